"""`mmpo argilla push` and `mmpo argilla pull`: what people are asked, and what they answered."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.annotate.argilla import PullOptions, PushOptions, printable
from mmpo.cli.flags import options_from, with_flags
from mmpo.cli.output import print_json, print_table, say
from mmpo.pipeline.progress import ProgressReporter

__all__ = ["pull", "push"]

Workspace = Annotated[str | None, typer.Option(help="The workspace; may be left out where the key sees a single one.")]
Dataset = Annotated[str, typer.Option(help="The dataset's name in Argilla.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


# Elsewhere --raters narrows the raters of a build; here it is how many people are asked.
@with_flags(PushOptions, without=("raters",))
def push(
    data: Annotated[
        Path, typer.Argument(metavar="PAIRS|FEEDBACK", help="A folder of pairs, or of candidates with or without grades.")
    ],
    *,
    dataset: Dataset,
    workspace: Workspace = None,
    raters: Annotated[
        int | None,
        typer.Option(help="How many people must answer until a record counts as completed. Default: 1 for a new dataset."),
    ] = None,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> int:
    """Hand pairs (or all replies of a prompt) out to people through Argilla; the key comes from ARGILLA_API_KEY.

    Makes the dataset, or adds what it lacks: the same command again changes nothing that is there, and after a fault it sends the rest.
    Example: mmpo argilla push judged --dataset pilot --select uncertain --limit 200 --raters 2
    """
    from mmpo.annotate.argilla.push import push as send

    options = options_from(PushOptions, {**given, "raters": raters}, flags=True)
    with ProgressReporter("push", "records") as progress:
        summary = send(data, dataset, workspace, options=options, progress=progress)
    _say_pushed(summary)
    if as_json:
        print_json(summary)
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
    from mmpo.annotate.argilla.pull import pull as fetch

    options = options_from(PullOptions, given, flags=True)
    with ProgressReporter("pull", "records") as progress:
        summary = fetch(dataset, out, workspace, options=options, progress=progress)
    _say_pulled(summary)
    if as_json:
        print_json(summary)
    return 0 if summary["finished"] else 3


def _say_pushed(summary: dict[str, Any]) -> None:
    name, seconds = printable(summary["dataset"]), max(summary["seconds"], 1e-9)
    moved = summary["sent"] + summary["updated"]
    rate = f" ({moved / seconds:,.0f} records/s)" if moved else ""
    suggested = f", {summary['suggested']:,} with a suggestion" if summary["suggested"] else ""
    say(
        f"{name}: {summary['sent']:,} new records, {summary['updated']:,} updated, {summary['unchanged']:,} there already{suggested}{rate}"
    )
    for reason, count in sorted(summary["left_out"].items()):
        example = summary["examples"].get(reason)
        say(
            f"left out: {reason} {count:,} ({LEFT_OUT.get(reason, 'see the docs')})"
            + (f"; Argilla says: {example}" if example else "")
        )
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
    for reason, count in sorted(summary["left_out"].items()):
        say(f"left out: {reason} {count:,} ({LEFT_OUT.get(reason, 'see the docs')}); evidence in {summary['out']}/rejects.parquet")
    if summary["nameless"]:
        say(f"raters that Argilla does not list (deleted, or not to be seen with this key): {', '.join(summary['nameless'])}")
    if summary["metadata_missing"]:
        say(f"{summary['metadata_missing']:,} records have lost their metadata: models and sources of their prompts are not known")
    say(f"feedback: {summary['out']}    (mmpo build {shlex.quote(summary['out'])} --format feedback --out ... makes pairs)")


MOST = 20
"""Rows of the agreement table that are printed; --json has all."""


def _say_agreement(summary: dict[str, Any]) -> None:
    """Each rater's grades, and how far every two of them agree, closest pair of raters first by what they share."""
    found = summary["agreement"]
    if found is None:
        print_table("", ("rater", "grades"), list(summary["raters"].items()))
        say(f"no agreement: {printable(summary['agreement_note'], 1000)}")
        return
    raters = [
        (row["name"], summary["raters"].get(row["name"]), row["units"], row["ties"], row["mean_margin"], row["position"])
        for row in found["raters"]
    ]
    print_table("", ("rater", "grades", "pairs", "ties", "mean |margin|", "toward first"), raters)
    rows = sorted(found["pairs"], key=lambda row: -row["units"])
    shown = [
        (row["first"], row["second"], row["units"], row["accuracy"], row["spearman"], row["alpha_interval"]) for row in rows[:MOST]
    ]
    if shown:
        print_table("", ("rater", "rater", "pairs", "accuracy", "Spearman", "α interval"), shown)
    if len(rows) > MOST:
        say(f"… and {len(rows) - MOST:,} more: --json has all")
    overall = found["overall"]["all"]
    if overall is not None:
        say(
            f"all raters at once: α interval {overall['alpha_interval']:.3f} on {overall['units']:,} pairs    (intervals: mmpo agree)"
        )
