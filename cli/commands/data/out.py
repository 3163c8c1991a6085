"""`mmpo export`, `mmpo push`, `mmpo pull`: a dataset or a model taken to other tools and to the Hub, and datasets back from there."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.annotate.exports import EXPORTS, TOLD, ExportOptions
from mmpo.annotate.exports import export as write_export
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, say
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.hub import RECORD, Pushed, pull_dataset, push_dataset, push_model
from mmpo.pipeline.options import in_words, options_from
from mmpo.pipeline.storage import MANIFEST

WHY = {
    "tie": "ties, which have no better reply",
    "same_replies": "replies that read the same there: what tells them apart (thinking, tool calls) has no place in their texts",
    "prompt_roles": "prompts that do not alternate between user and assistant up to the user's last message",
    "other_split": "pairs of splits that the format does not take",
    "too_many_messages": "conversations of more messages than the page shows",
}


@with_flags(ExportOptions)
def export(
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder that `mmpo build` wrote.")],
    *,
    to: Annotated[str, typer.Option(help=f"{in_words(EXPORTS)}; `mmpo list exports` says more.")],
    out: Annotated[Path, typer.Option(help="File or folder to write.")],
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Write a dataset in another tool's format; what is left out, and what the format has no place for, is counted.

    Example: mmpo export pairs --to label-studio --out tasks
    """
    summary = write_export(dataset, to, out, options_from(ExportOptions, given, flags=True))
    say(f"{out}: " + ", ".join(f"{count:,} {split}" for split, count in summary["pairs"].items()))
    if summary["gamma"] is not None:
        say(f"γ: {summary['gamma']:.6g}")
    print_rows("left out", [{"pairs": count, "why": WHY.get(reason, reason)} for reason, count in summary["left_out"].items()])
    print_rows(
        f"{to} has no place for", [{"pairs": count, "what": TOLD.get(name, name)} for name, count in summary["lost"].items()]
    )
    say(f"next: {summary['next']}")
    print_json(summary, as_json)


def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder of pairs or of FEEDBACK that passes `mmpo validate`, or a model of `mmpo train` or `mmpo merge`.",
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The dataset or model on the Hub; made where there is none.")],
    feedback: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A FEEDBACK folder to stand beside the pairs, as the configuration feedback.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may read it; what is new there is private otherwise.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="The licence for the head of the page, such as cc-by-4.0.")] = None,
    message: Annotated[str | None, typer.Option(help="The message of the commit.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Files of an earlier push, too, that somebody changed on the Hub since.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push a dataset or a model to the Hugging Face Hub: one commit with all of it, or none; stopped, the same command again resumes.

    The token is that of HF_TOKEN or of `hf auth login`. Afterwards load_dataset("OWNER/NAME"), or from_pretrained, opens it.
    Example: mmpo push pairs me/pairs
    """
    if (folder / RECORD).is_file() or (not (folder / MANIFEST).is_file() and (folder / "config.json").is_file()):
        if feedback is not None:
            raise UserError(f"--feedback stands beside pairs, and {folder} is a model: leave it out")
        pushed = push_model(folder, name, public=public, license=license, message=message, overwrite=overwrite)
        _told(pushed)
        say(f"next: --model {pushed.model}, or from_pretrained")
        print_json(vars(pushed), as_json)
        return
    done = push_dataset(folder, name, feedback=feedback, public=public, license=license, message=message, overwrite=overwrite)
    for line in done.warnings:
        say(f"warning: {line}")
    _told(done)
    say(f"next: mmpo pull {done.dataset}@{done.revision} --out FOLDER")
    print_json(vars(done), as_json)


def _told(done: Pushed) -> None:
    say(f"{done.files:,} files, {done.bytes:,} bytes" + ("" if done.changed else ": nothing differs from what is there"))
    say(f"{done.url}: {'private' if done.private else 'public'}, revision {done.revision}")


def pull(
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME[@REVISION]", help="A dataset that `mmpo push` made, at a branch, tag or commit.")
    ],
    out: Annotated[Path, typer.Option(help="The dataset folder to write; written whole or not at all.")],
    feedback: Annotated[bool, typer.Option("--feedback", help="Fetch the FEEDBACK folder that stands beside the pairs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a pushed dataset from the Hugging Face Hub as the folder that it was; the commit is written into its manifest.

    Example: mmpo pull me/pairs@main --out pairs
    """
    done = pull_dataset(name, out, feedback=feedback)
    say(f"{done['dataset']}@{done['revision']}: " + ", ".join(f"{count:,} {split}" for split, count in done["rows"].items()))
    say(f"dataset: {out}, {done['files']:,} files as their digests say")
    print_json(done, as_json)
