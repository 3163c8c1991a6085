"""`calibrate`: graders' margins onto people's, from FEEDBACK to figures and to FEEDBACK with calibrated graders in it."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.annotate.agreement.columns import HUMAN, choose_columns
from mmpo.annotate.agreement.margins import RaterMargins, read_margins
from mmpo.annotate.calibrate.grader import Calibrated, calibrate_grader, labelled_by
from mmpo.annotate.calibrate.jury import JURY, against, jury_of
from mmpo.annotate.calibrate.options import CalibrateOptions
from mmpo.annotate.calibrate.output import write_calibrated
from mmpo.annotate.calibrate.overlap import PEOPLE, Grader, People, grader_of, in_words, people_of
from mmpo.annotate.calibrate.position import identified
from mmpo.annotate.calibrate.prediction_powered import estimates
from mmpo.pipeline.api import feedback_table
from mmpo.pipeline.arrow import flat, large
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import merge_prompts
from mmpo.pipeline.metrics import FEWEST_CLUSTERS
from mmpo.pipeline.storage import check_out

LEAST_PAIRS = 10
"""Pairs that a grader and people must share."""
Progress = Callable[[str, int, int], None]


def calibrate(feedback: str | Path | pa.Table, *, progress: Progress | None = None, **given: Any) -> dict[str, Any]:
    """Map every grader's margins onto people's; feedback: a FEEDBACK folder, or a table of that schema; given: CalibrateOptions.

    Returns {"graders": {name: figures}, "left_out": {name: reason}, "to", "people", "onto", "out"?, "page"?, "rows"?}; several
    aspects make names NAME/ASPECT; onto: whose margins are the measure, in words. Of each grader: pairs, human_pairs (graded by these too),
    method, cross_entropy and ece {"raw", "calibrated"} by
    held-out folds (raw: σ(γm) at γ auto), scale (human units per unit of the grader), bias (toward what is shown first, in its
    units, with bias_se and bias_pairs), gain_over_auto (raw less calibrated cross-entropy; below 0: γ auto did better) and its interval
    gain_over_auto_95, margin_se, knows, and more. With `out` every grader that is shown to know something stands in the FEEDBACK written
    there as NAME@human, or of other raters NAME@RATER: comparisons in their units, `spread` their standard error.

    Raises UserError: no people, no grader, no pair that both graded or fewer than ten, all ties, unknown names, people on several scales.

    >>> from mmpo.pipeline import read_feedback
    >>> rows = [
    ...     {"prompt": f"{n} + 1?", "completion": text, "score": score + shift * (n % 2), "rater": rater}
    ...     for n in range(12)
    ...     for text, score in ((f"{n + 1}.", 4), ("I know.", 2), ("No.", 1))
    ...     for rater, shift in (("ann", 0), ("bob", 1))
    ... ]
    >>> feedback = read_feedback(pa.Table.from_pylist(rows), scale=(1, 5))
    >>> found = calibrate(feedback, raters="bob", to="ann")
    >>> list(found["graders"]), found["graders"]["bob"]["pairs"]
    (['bob'], 36)
    """
    options = CalibrateOptions(**given)
    with one_thread():
        return _calibrated(feedback, options, progress)


@contextmanager
def one_thread() -> Iterator[None]:
    """numpy and scipy with one thread: a fit is of some hundred numbers at a time, and more would only spin, for four times as long."""
    import scipy.optimize  # noqa: F401 - what is loaded later is not limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


def _calibrated(feedback: str | Path | pa.Table, options: CalibrateOptions, progress: Progress | None) -> dict[str, Any]:
    """What `calibrate` returns."""
    if options.out:
        check_out(Path(options.out), [] if isinstance(feedback, pa.Table) else [feedback])
    table = feedback_table(feedback, "calibrate")
    merged, _ = merge_prompts(large(table).combine_chunks())
    margins = read_margins(merged, choose_columns(merged, aspects=options.aspects))
    graders, people = _sides(margins, options)
    who = in_words(margins, people)
    ids = np.array(flat(merged["prompt_id"]).to_pylist(), dtype=object)
    done, left_out = _all_calibrated(margins, graders, people, ids, options, progress)
    if not done:
        raise _nothing(feedback, who, left_out)
    one_aspect = len({one.grader.aspect for one in done}) == 1
    named = {one.grader.name if one_aspect else f"{one.grader.name}/{one.grader.aspect}": one for one in done}
    for one in done:
        one.figures.update(estimates(one, merged, margins))
    kept = [one for one in done if one.knows or options.unproven == "keep"]
    summary: dict[str, Any] = {
        "graders": {name: one.figures | {"written": one in kept and bool(options.out)} for name, one in named.items()},
        "left_out": left_out, "to": list(options.to), "people": [margins.chosen.columns[i].name for i in people],
        "onto": who, "prompts": margins.prompts,
    }  # fmt: skip
    if options.out:
        source = feedback if isinstance(feedback, (str, Path)) else None
        summary |= write_calibrated(merged, margins, kept, summary, asdict(options), Path(options.out), source, _suffix(who))
    return summary


def _sides(margins: RaterMargins, options: CalibrateOptions) -> tuple[list[int], list[int]]:
    """The columns of the graders and of people. Raises UserError."""
    columns = margins.chosen.columns
    raters = {column.rater for column in columns}
    own = [i for i, column in enumerate(columns) if not is_calibrated(column.rater, raters)]
    names = sorted({name for i in own for name in (columns[i].name, columns[i].rater)})
    for flag, wanted in (("--to", [one for one in options.to if one != HUMAN]), ("--rater", options.raters or ())):
        for name in wanted:
            if name not in names:
                raise unknown_name(flag, name, [*([HUMAN] if flag == "--to" else []), *names[:40]])
    if len(own) < 2:
        raise UserError(
            f"the only rater is {columns[own[0]].name if own else 'none'}: calibrating takes a grader and people on the same pairs. "
            "mmpo judge adds a judge, mmpo argilla push and pull add people"
        )

    def is_named(i: int, given: Sequence[str]) -> bool:
        return columns[i].name in given or columns[i].rater in given

    graders = [i for i in own if (is_named(i, options.raters) if options.raters else columns[i].kind != HUMAN)]
    people = [i for i in own if is_named(i, options.to) or (HUMAN in options.to and columns[i].kind == HUMAN and i not in graders)]
    if not people:
        raise UserError(
            f"--to {','.join(options.to)}: no grade is by a person other than the graders. Raters: {', '.join(names[:40])}. mmpo "
            "argilla push asks people, mmpo argilla pull --feedback adds their grades; --to RATER,RATER names others to calibrate onto"
        )
    graders = [i for i in graders if i not in people]
    if not graders and (who := in_words(margins, people)) != PEOPLE:
        others = ", ".join(columns[i].name for i in own if i not in people)
        persons = all(columns[i].kind == HUMAN for i in own if i not in people)
        whose = "the other raters are people" if persons else "--rater names none of the others"
        why = f"{whose} ({others}); --rater NAME calibrates one" if others else "there is no other rater"
        raise UserError(f"there is nobody to calibrate onto {who}: {why}")
    if not graders:
        raise UserError(
            f"there is nobody to calibrate: all raters are people ({', '.join(names[:40])}). mmpo judge adds a judge; --rater NAME "
            "--to NAME,NAME calibrates one person onto others"
        )
    return graders, people


def _suffix(who: str) -> str:
    """What a calibrated grader is called by: the raters whose units it has."""
    return f"@{HUMAN if who == PEOPLE else who.replace(' and ', '+')}"


def is_calibrated(rater: str, raters: Collection[str]) -> bool:
    """Whether an earlier calibration left this rater."""
    name, _, measure = rater.rpartition("@")
    return measure == HUMAN or (name in {*raters, JURY} and {*measure.split("+")} <= {*raters})


def _all_calibrated(
    margins: RaterMargins, graders: Sequence[int], people: Sequence[int], ids: np.ndarray, options: CalibrateOptions,
    progress: Progress | None,
) -> tuple[list[Calibrated], dict[str, str]]:  # fmt: skip
    done: list[Calibrated] = []
    left_out: dict[str, str] = {}
    aspects = range(len(margins.chosen.aspects))
    total = len(graders) * len(aspects)
    for number, aspect in enumerate(aspects):
        theirs = people_of(margins, people, aspect)
        found = [grader_of(margins, column, aspect) for column in graders]
        usable: list[Grader] = []
        for place, (column, grader) in enumerate(zip(graders, found, strict=True)):
            if progress is not None:
                progress("calibrating", number * len(graders) + place + 1, total)
            if grader is None:
                continue
            if reason := _unusable(grader, theirs):
                left_out[f"{margins.chosen.columns[column].name}/{margins.chosen.aspects[aspect]}"] = reason
                continue
            grader = identified(grader, theirs.answers)
            usable.append(grader)
            done.append(calibrate_grader(grader, theirs, ids, options))
        if options.jury and len(usable) > 1:
            jury = jury_of(usable)
            if reason := _unusable(jury, theirs):
                left_out[f"{JURY}/{jury.aspect}"] = f"of the pairs that all its members graded: {reason}"
            else:
                stacked = calibrate_grader(jury, theirs, ids, options)
                stacked.figures.update(against(jury, usable, theirs, ids, stacked, options))
                done.append(stacked)
    return done, left_out


def _unusable(grader: Grader, people: People) -> str:
    """Why a grader can't be calibrated; "" where it can."""
    shared = grader.take(labelled_by(grader, people))
    answers = people.answers.take(shared.unit)
    if not len(shared.unit):
        return f"{people.who} graded none of its {len(grader.unit):,} pairs"
    if len(shared.unit) < LEAST_PAIRS:
        return f"{people.who} graded {len(shared.unit)} of its {len(grader.unit):,} pairs, and it takes {LEAST_PAIRS}"
    if (prompts := len(np.unique(shared.prompt))) < FEWEST_CLUSTERS:
        return (
            f"the pairs that {people.who} graded are of {prompts} prompt{'s' * (prompts != 1)}; maps are judged on other prompts than they "
            f"are fitted to, which takes {FEWEST_CLUSTERS}"
        )
    if not shared.features[:, : grader.margins].any():
        return f"its margins of the pairs that {people.who} graded are all ties"
    if not answers.levels[:, answers.values != 0].any():
        return f"all of its pairs are ties for {people.who}"
    return ""


def _nothing(feedback: Any, who: str, left_out: dict[str, str]) -> UserError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:6])
    folder = feedback if isinstance(feedback, (str, Path)) else "FEEDBACK"
    if who != PEOPLE:
        return UserError(
            f"no grader can be calibrated to {who}: {reasons}. It takes grades by {who} of some of the same pairs under the same aspect"
        )
    return UserError(
        f"no grader can be calibrated to people: {reasons}. Have people grade some of the same pairs under the same "
        f"aspect, drawn at random: mmpo argilla push {quote(str(folder))} "
        f"--dataset NAME --limit 100 --raters 2, then mmpo argilla pull --dataset NAME "
        f"--feedback {quote(str(folder))}"
    )
