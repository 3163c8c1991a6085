"""`mmpo score`: reward models and policies as graders; one flag for every field of ScoreOptions."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from mmpo.cli.asking import counted
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, say
from mmpo.pipeline.options import options_from
from mmpo.train.scoring import ScoreOptions, scorers_of


@with_flags(ScoreOptions)
def score(
    feedback: Annotated[Path, typer.Argument(metavar="FEEDBACK", help="A FEEDBACK folder (`mmpo build ... --feedback-only`).")],
    *,
    out: Annotated[Path, typer.Option(help="The folder to write: the same FEEDBACK with the grades added.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="DIR[,KEY=VALUE...]",
            help="A reward model or a policy, a folder or a Hugging Face name, repeated for several; keys: rater, reference, beta, "
            "chat_template.",
        ),
    ] = None,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Grade every completion by reward models, or by policies' implicit rewards; each is a rater of kind reward_model.

    Every value is kept as soon as it is computed: the same command again computes only what is missing. Then
    `mmpo build OUT --format feedback --out pairs` makes pairs of the grades. Example:
    mmpo score candidates --model models/reward --model org/reward-model,rater=other --out scored
    """
    print_json(run_score(feedback, out, options_from(ScoreOptions, given, flags=True), model or []), as_json)


def run_score(feedback: Path, out: Path, options: ScoreOptions, models: Sequence[Any]) -> dict[str, Any]:
    """Have the models grade; the summary, which is also said."""
    scorers = scorers_of(models)
    from mmpo.train import score as grade

    summary = grade(feedback, [vars(one) for one in scorers], out, **vars(options))
    columns = {"rater": "rater", "kind": "kind", "grades": "grades", "already": "already there", "left out": "left out"}
    columns |= {"truncated": "cut short", "seconds": "seconds"}
    print_rows("", [{**row, "left out": sum(row["left_out"].values())} for row in summary["raters"]], columns)
    for row in summary["raters"]:
        if row["left_out"]:
            say(f"{row['rater']}: without a grade: {counted(row['left_out'])}; which ones: {summary['out']}/rejects.parquet")
    say(f"feedback: {summary['out']}    (mmpo build {quote(summary['out'])} --format feedback --out ... makes pairs)")
    return summary
