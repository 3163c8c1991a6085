"""`mmpo report`: a page to judge a dataset by, with what raters said where that can be read; or what changed between two versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmpo.cli.output import AsJson, print_json, say
from mmpo.pipeline.errors import UserError

if TYPE_CHECKING:
    from mmpo.annotate.agreement import RaterOverview

AUTO, NONE = "auto", "none"


def report(
    datasets: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR [OTHER]", help="A dataset folder that `mmpo build` wrote; two: the older version, then the newer."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The page to write (DIR.html; of two DIR-OTHER.html).")] = None,
    feedback: Annotated[
        str,
        typer.Option(
            metavar="auto|none|FEEDBACK",
            help="What single raters said: a FEEDBACK folder; auto: the build's inputs, where they are here, unchanged and not "
            "too large; none.",
        ),
    ] = AUTO,
    as_json: AsJson = False,
) -> None:
    """Write a self-contained HTML page to judge a dataset by, or of two versions what came, went and changed.

    What to look at first; margins and targets by γ, length, raters, aspects, models, sources, duplicates, checks, what was left out, and a
    browser of examples. Figures come with 95% intervals over prompts. The page opens from disk and asks nothing of any network.
    """
    if len(datasets) > 2:
        raise UserError(f"mmpo report takes one dataset, or two versions of one; given were {len(datasets)}")
    names = "-".join(folder.resolve().name for folder in datasets)
    page = out or datasets[0].with_name(f"{names}.html")
    if len(datasets) == 2:
        from mmpo.pipeline.report import compare_versions

        if feedback not in (AUTO, NONE):
            raise UserError(
                "--feedback is of one dataset; two versions are compared by their pairs. Leave it out, or report on each by itself"
            )
        found = compare_versions(datasets[0], datasets[1], page, summarise=as_json)
    else:
        from mmpo.pipeline.report import report_on

        overview, why = _raters(datasets[0], feedback)
        found = report_on(datasets[0], page, raters=overview, no_raters=why, summarise=as_json)
    say(f"page: {found['out']}")
    print_json(found, as_json)


def write_page(dataset: Path, out: Path, feedback: str = AUTO) -> Path:
    """The page about one dataset, with its raters where what they said is given or can be read again."""
    from mmpo.pipeline.report import write_report

    overview, why = _raters(dataset, feedback)
    return write_report(dataset, out, raters=overview, no_raters=why)


def _raters(dataset: Path, feedback: str) -> tuple["RaterOverview | None", str]:
    """What raters are like, or None and why it is not known."""
    from mmpo.pipeline.report import feedback_of
    from mmpo.pipeline.storage import read_manifest

    if feedback == NONE:
        return None, ""
    if feedback != AUTO and not Path(feedback).is_dir():
        raise UserError(
            f"--feedback {feedback}: no such folder. Give {AUTO}, {NONE}, or a folder that `mmpo build --feedback-only` wrote"
        )
    table, why = feedback_of(dataset) if feedback == AUTO else (None, "")
    if table is None and feedback == AUTO:
        return None, why
    from mmpo.annotate.agreement import overview_or_reason, rater_overview  # a page without raters does without the package

    if table is None:
        return rater_overview(Path(feedback)), ""
    manifest = read_manifest(dataset)
    recipe = manifest["recipe"]
    if recipe.get("sources"):  # each chose among its own
        return overview_or_reason(table)
    counting = {"aspects": tuple(manifest.get("score") or ()), "evidence": manifest.get("evidence") or "auto"}
    return overview_or_reason(table, kinds=recipe.get("kinds"), raters=recipe.get("raters"), **counting)
