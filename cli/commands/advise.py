"""`mmpo advise DIR`: do these margins help, and what should be set? One flag for every field of AdviseOptions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, say, shown
from mmpo.pipeline.options import options_from
from mmpo.train.advise import AdviseOptions


@with_flags(AdviseOptions)
def advise(
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="PAIRS or FEEDBACK: a folder that `mmpo build` wrote, or a file.")],
    *,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Measure what margins are worth on these data, against matched smoothing and shuffled margins, and say what to set.

    Small heads on features of every completion, all objectives, weight decay tuned for each, prompts split; differences with 95% intervals.
    """
    chosen = options_from(AdviseOptions, given, flags=True)
    from mmpo.train.advise import advise as measure

    summary = measure(dataset, **vars(chosen))
    print_rows(
        "objectives, on held-out prompts (differences in points of accuracy)", [_row(effect) for effect in summary["effects"]]
    )
    say(
        f"{summary['splits']} splits: {summary['seeds']} of the prompts that judge (--seeds), each in {summary['turns']} turns of those "
        f"that choose; {summary['prompts_that_judge']} of {summary['prompts']} prompts judge"
    )
    for sentence in summary["sentences"]:
        say(sentence)
    for gap in summary["not_measurable"]:
        say(f"not measured: {gap['what']} ({gap['why']}); {gap['command']}")
    say(f"recipe: {summary['recipe']}")
    if "out" in summary:
        say(f"page: {summary['out']}")
    print_json(summary, as_json)


def _row(effect: dict[str, Any]) -> dict[str, str]:
    chosen = "chosen" in effect["options"]
    row = {"objective": effect["objective"], "mean target": "chosen" if chosen else shown(effect["mean_target"])}
    row |= {name: str(effect["options"].get(name, "–")) for name in ("target", "ties")}
    row |= {"accuracy": f"{100 * effect['accuracy']:.1f}", "NLL": f"{effect['nll']:.4f}", "ECE": f"{effect['ece']:.3f}"}
    row["untuned"] = f"{100 * effect['untuned']['accuracy']:.1f}"
    for name, title in (("bradley_terry", "− Bradley–Terry"), ("matched", "− matched"), ("shuffled", "− shuffled")):
        difference = effect[f"minus_{name}"]
        row[title] = "–" if difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * v for v in difference["accuracy"]))
    return row
