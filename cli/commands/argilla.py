"""`mmpo argilla serve`, `push`, `status` and `pull`: a real Argilla here, what people are asked there, how far they are, what they said."""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.annotate.argilla import PullOptions, PushOptions
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, print_table, say
from mmpo.cli.selecting import featurize
from mmpo.pipeline.errors import UserError, printable
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import ProgressReporter

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("mmpo.cli.commands.argilla:serve", "A real Argilla on this machine in one command: SQLite, nothing else to run."),
    "push": ("mmpo.cli.commands.argilla:push", "Pairs or candidates into an Argilla dataset, for people to grade."),
    "status": ("mmpo.cli.commands.argilla:status", "How far people are: complete, per person, agreement so far."),
    "pull": ("mmpo.cli.commands.argilla:pull", "What people graded, from an Argilla dataset into FEEDBACK."),
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
        print_json(facts, as_json)

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
        say(f"\n{user['role']} {user['name']}{'' if user['created'] else ' (new password)'}\n  password  {secret}", always=True)
        if user["role"] == "owner":
            say(f"  API key   {user['api_key']}", always=True)
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


Workspace = Annotated[str | None, typer.Option(help="The workspace; may be left out where the key sees a single one.")]
Dataset = Annotated[str, typer.Option(help="The dataset's name in Argilla.")]


@with_flags(PushOptions)
def push(
    data: Annotated[
        Path, typer.Argument(metavar="PAIRS|FEEDBACK", help="A folder of pairs, or of candidates with or without grades.")
    ],
    *,
    dataset: Dataset,
    workspace: Workspace = None,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> int:
    """Hand pairs (or all replies of a prompt) out to people through Argilla; the key comes from ARGILLA_API_KEY.

    Makes the dataset, or adds what it lacks: the same command again changes nothing that is there, and after a fault it sends the rest.
    Example: mmpo argilla push judged --dataset pilot --select uncertain --limit 200 --raters 2
    """
    from mmpo.annotate.argilla import push as send

    options = options_from(PushOptions, given, flags=True)
    with ProgressReporter("push", "records") as progress:
        summary = send(data, dataset, workspace, options=options, progress=progress, featurize=featurize)
    _say_pushed(summary)
    print_json(summary, as_json)
    return 0 if summary["finished"] else 3


@with_flags(PullOptions)
def pull(
    *,
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="The FEEDBACK folder to write; an earlier pull's is brought up to date.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> int:
    """Bring people's submitted answers back as FEEDBACK, a grade each; the key comes from ARGILLA_API_KEY.

    Raters get pseudonyms unless --real-names. The same command again adds what is new. Then `mmpo agree OUT` says how far they agree, and
    `mmpo build OUT --format feedback --out pairs` makes pairs with margins and standard errors.
    """
    from mmpo.annotate.argilla import pull as fetch

    options = options_from(PullOptions, given, flags=True)
    with ProgressReporter("pull", "records") as progress:
        summary = fetch(dataset, out, workspace, options=options, progress=progress)
    _say_pulled(summary)
    print_json(summary, as_json)
    return 0 if summary["finished"] else 3


def status(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="The dataset's name in Argilla.")] = None,
    *,
    dataset: Annotated[str | None, typer.Option(help="The same, as `push` and `pull` take it.")] = None,
    workspace: Workspace = None,
    api_url: Annotated[
        str | None, typer.Option(help="Argilla's address. Default: the variable ARGILLA_API_URL, else http://127.0.0.1:6900.")
    ] = None,
    real_names: Annotated[bool, typer.Option("--real-names", help="Show user names instead of pseudonyms.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say how far people are with a dataset: records complete, answers by person, agreement so far; nothing is written.

    The key comes from ARGILLA_API_KEY. Example: mmpo argilla status pilot --real-names
    """
    from mmpo.annotate.argilla import status as look

    named = {one for one in (name, dataset) if one is not None}
    if len(named) != 1:
        what = "no dataset is named" if not named else f"two datasets are named ({name}, --dataset {dataset})"
        raise UserError(f"{what}: give one, as mmpo argilla status NAME or mmpo argilla status --dataset NAME")
    with ProgressReporter("status", "records") as progress:
        summary = look(named.pop(), workspace, api_url=api_url, real_names=real_names, progress=progress)
    _say_status(summary, real_names)
    print_json(summary, as_json)


def _say_status(summary: dict[str, Any], real_names: bool) -> None:
    records, wanted = summary["records"], summary["raters_wanted"]
    share = f" ({summary['complete'] / records:.0%})" if records else ""
    say(
        f"{printable(summary['dataset'])}: {summary['complete']:,} of {records:,} records complete{share}, with {wanted} "
        f"answer{'' if wanted == 1 else 's'} each; {summary['begun']:,} begun, {summary['untouched']:,} untouched"
    )
    columns = {"name": "person", **{name: name for name in ("submitted", "draft", "discarded", "left", "last")}}
    print_rows("", [{**row, "last": (row["last"] or "")[:16].replace("T", " ") or None} for row in summary["people"]], columns)
    _say_agreement({**summary, "raters": {row["name"]: row["submitted"] for row in summary["people"]}}, heading="agreement so far")
    if not real_names:
        say("people stand here under pseudonyms; --real-names shows their names")


def _say_pushed(summary: dict[str, Any]) -> None:
    name, seconds = printable(summary["dataset"]), max(summary["seconds"], 1e-9)
    moved = summary["sent"] + summary["updated"]
    rate = f" ({moved / seconds:,.0f} records/s)" if moved else ""
    suggested = f", {summary['suggested']:,} with a suggestion" if summary["suggested"] else ""
    say(
        f"{name}: {summary['sent']:,} new records, {summary['updated']:,} updated, {summary['unchanged']:,} there already{suggested}{rate}"
    )
    examples = {reason: f"; Argilla says: {example}" for reason, example in summary["examples"].items() if example}
    _say_left_out(summary, examples)
    say(f"people grade at {summary['url']}    (mmpo argilla pull --dataset {shlex.quote(name)} --out ... brings the answers back)")


LEFT_OUT = {
    "edited_in_argilla": "their texts were changed there; delete them in Argilla to have them pushed anew",
    "id_of_other_text": "their ids are not those of their texts; build the folder again",
    "no_completion": "prompts without a reply",
    "no_pair": "prompts of which --pairs takes none",
    "not_in_feedback": "their prompt or replies are not in the folder of --feedback",
    "question_edited": "the question was reworded in Argilla; --trust-labels takes its values as they are",
    "record_edited": "the record's texts are not those that were pushed",
    "foreign_record": "mmpo did not push the record",
    "no_grade": "they hold none of the grades that were offered",
    "refused_by_argilla": "Argilla did not take them",
    "several_messages": "replies of several messages",
    "too_many_completions": "more replies than the dataset has fields",
    "too_many_messages": "longer than Argilla's chat field",
}
"""What a reason means, and what to do."""


def _say_left_out(summary: dict[str, Any], more: dict[str, str]) -> None:
    for reason, count in sorted(summary["left_out"].items()):
        say(f"left out: {reason} {count:,} ({LEFT_OUT.get(reason, 'see the docs')}){more.get(reason, '')}")


def _say_pulled(summary: dict[str, Any]) -> None:
    counts = summary["responses"]
    _say_agreement(summary)
    say(
        f"{summary['grades']:,} grades of {len(summary['raters'])} raters on {summary['prompts']:,} prompts: {summary['new']:,} new, "
        f"{summary['changed']:,} changed, {summary['unchanged']:,} as before, {summary['withdrawn']:,} taken back"
    )
    say(f"not submitted: {counts.get('draft', 0):,} drafts, {counts.get('discarded', 0):,} discarded")
    if summary["replaced"]:
        say(f"replaced: {summary['replaced']:,} grades of the same people that the folder of --feedback had already")
    for reason, count in sorted(summary["kept"].items()):
        say(f"kept from an earlier pull, gone from Argilla: {reason} {count:,}")
    _say_left_out(summary, dict.fromkeys(summary["left_out"], f"; evidence in {summary['out']}/rejects.parquet"))
    if summary["nameless"]:
        say(f"raters that Argilla does not list (deleted, or not to be seen with this key): {', '.join(summary['nameless'])}")
    if summary["metadata_missing"]:
        say(f"{summary['metadata_missing']:,} records have lost their metadata: models and sources of their prompts are not known")
    if any(re.fullmatch(r"rater-[0-9a-f]{10}", name) for name in summary["raters"]):
        say("people stand here under pseudonyms; a pull into another folder with --real-names writes their names")
    say(f"feedback: {summary['out']}    (mmpo build {shlex.quote(summary['out'])} --format feedback --out ... makes pairs)")


MOST = 20
"""Rows of the agreement table that are printed; --json has all."""


def _say_agreement(summary: dict[str, Any], heading: str = "") -> None:
    """Each rater's grades, and how far every two of them agree, closest pair of raters first by what they share."""
    found = summary["agreement"]
    if found is None:
        if not heading:
            print_table("", ("rater", "grades"), list(summary["raters"].items()))
        say(f"no agreement: {printable(summary['agreement_note'], 1000)}")
        return
    columns = {"name": "rater", "grades": "grades", "units": "pairs", "ties": "ties", "mean_margin": "mean |margin|"}
    raters = [{**row, "grades": summary["raters"].get(row["name"])} for row in found["raters"]]
    print_rows(heading, raters, {**columns, "position": "toward first"})
    columns = {"first": "rater", "second": "rater", "units": "pairs", "accuracy": "accuracy", "spearman": "Spearman"}
    rows = sorted(found["pairs"], key=lambda row: -row["units"])
    print_rows("", rows, {**columns, "alpha_interval": "α interval"}, MOST)
    overall = found["overall"]["all"]
    if overall is not None:
        say(
            f"all raters at once: α interval {overall['alpha_interval']:.3f} on {overall['units']:,} pairs    (intervals: mmpo agree)"
        )
