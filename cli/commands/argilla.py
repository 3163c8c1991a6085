"""`mmpo argilla serve`: a real Argilla on this machine in one command. The group's other commands stand in `argilla_data`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.output import print_json, say

__all__ = ["COMMANDS", "serve"]

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("mmpo.cli.commands.argilla:serve", "A real Argilla on this machine in one command: SQLite, nothing else to run."),
    "push": ("mmpo.cli.commands.argilla_data:push", "Pairs or candidates into an Argilla dataset, for people to grade."),
    "pull": ("mmpo.cli.commands.argilla_data:pull", "What people graded, from an Argilla dataset into FEEDBACK."),
}
"""The commands of the group, as `mmpo.cli.main.COMMANDS` has them."""


def serve(
    home: Annotated[Path, typer.Option(help="The folder that keeps everything; the same one carries on where it stopped.")],
    port: Annotated[int, typer.Option(help="The port to listen on; 0 is any free one.")] = 6900,
    host: Annotated[
        str, typer.Option(help="The address to listen on. Another than loopback wants chosen passwords, and a network you trust.")
    ] = "127.0.0.1",
    owner: Annotated[
        str | None, typer.Option(metavar="NAME", help="The owner, made where missing; 'owner' where there is none yet.")
    ] = None,
    annotator: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An annotator, made where missing; repeat for several.")
    ] = None,
    new_password: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Give a user a new password; repeat for several.")
    ] = None,
    workspace: Annotated[str, typer.Option(help="The workspace that they belong to, made where missing.")] = "team",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Install the server's environment (about 600 MB) without asking.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print address and users as one JSON object on standard output when it is ready.")
    ] = False,
) -> None:
    """Serve Argilla and its page on this machine until Ctrl-C, for trying out and for small teams; everything stays in --home.

    The first time it installs Argilla's server into an environment of its own, in the cache folder or where MMPO_ARGILLA_ENV says.
    Passwords come from MMPO_ARGILLA_PASSWORD_<NAME>, else they are generated; they and the API keys are printed once, when a user is made.
    """
    from mmpo.annotate.argilla_server.serve import is_loopback
    from mmpo.annotate.argilla_server.serve import serve as run

    def ready(facts: dict[str, Any]) -> None:
        say_ready(facts, only_here=is_loopback(facts["host"]))
        if as_json:
            print_json(facts)

    run(
        home,
        agree=lambda question: _agree(question, yes),
        ready=ready,
        host=host,
        port=port,
        owner=owner,
        annotators=annotator or (),
        renewed=new_password or (),
        workspace=workspace,
    )
    say(f"stopped; everything is in {home}")


def _agree(question: str, yes: bool) -> bool:
    from mmpo.pipeline.errors import UserError

    if not yes and not sys.stdin.isatty():
        raise UserError(f"{question} There is no terminal to ask on: add --yes to install it")
    if yes or typer.confirm(f"{question} Install it?", default=True, err=True):
        say(f"{question} Installing ...")
        return True
    return False


def say_ready(facts: dict[str, Any], only_here: bool) -> None:
    """Where it is, how to log in, and what comes next."""
    say(f"\nArgilla {facts['version']} answers at {facts['url']}")
    say(f"  everything is in {facts['home']}; messages of the server in {facts['log']}")
    say("  for trying out and for small teams; a team that grows runs a full Argilla and pushes the same data there")
    if not only_here:
        say(f"  WARNING: --host {facts['host']} lets others in without encryption: on a network you trust only, for a small team")
    made = [user for user in facts["users"] if "api_key" in user]
    for user in made:
        secret = user.get("password", "(from the environment)")
        say(f"\n{user['role']} {user['name']}{'' if user['created'] else ' (new password)'}\n  password  {secret}")
        if user["role"] == "owner":
            say(f"  API key   {user['api_key']}")
    if made:
        say("\nThis is printed once: note it down.")
    others = [user["name"] for user in facts["users"] if "api_key" not in user]
    if others:
        say(
            f"\nusers from before: {', '.join(others)} (forgotten? --new-password NAME; the API key stands on the page, My settings)"
        )
    say("\nLog in on the page with name and password. Next, in another terminal:")
    say(f"  export ARGILLA_API_URL={facts['url']} ARGILLA_API_KEY=...   # the owner's API key")
    workspace = shlex.quote(facts["workspace"])
    say(f"  mmpo argilla push PAIRS --dataset NAME --workspace {workspace}")
    say(f"  mmpo argilla pull --dataset NAME --workspace {workspace} --out DIR")
    say("\nCtrl-C stops it; the same command starts it again.")
