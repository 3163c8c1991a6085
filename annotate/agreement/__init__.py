"""Agreement among raters: judges against people and against one another, in signed margins. `mmpo agree` prints what `agree`
returns.

raters       what each is like by itself                 position      the lean toward what was shown first
pairs        every two raters                            length        the taste for the longer text
against      each rater against the reference rater            calibration   a judge's margins against people's votes
overall      all raters, people, judges at once          consistency   the same question asked again
severity     scores beside those of others
"""

from collections.abc import Callable, Sequence
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.annotate.agreement.against import against_reference, calibration_row, choosing_row, shared, votes
from mmpo.annotate.agreement.columns import HUMAN, Chosen, choose_columns
from mmpo.annotate.agreement.margins import RaterMargins, read_margins
from mmpo.annotate.agreement.overview import RaterOverview, overview_or_reason, rater_overview
from mmpo.annotate.agreement.raters import consistency_row, length_row, position_row, rater_row, severity_rows
from mmpo.annotate.agreement.statistics import (
    OF_TWO,
    agreement_of_all,
    agreement_of_two,
    patterns,
    rank_correlation,
    signed_ranks,
)
from mmpo.pipeline.api import feedback_table
from mmpo.pipeline.errors import UserError

Progress = Callable[[str, int, int], None]


def agree(
    feedback: str | Path | pa.Table,
    *,
    evidence: str = "auto",
    kinds: Sequence[str] | None = None,
    raters: Sequence[str] | None = None,
    aspects: Sequence[str] | None = None,
    against: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How far raters agree, as a dictionary that JSON holds; feedback: a FEEDBACK folder, or a table of that schema.

    evidence: "auto" (all there is), "comparisons", "ratings" or "both" (needs both); kinds, raters, aspects narrow it. against: the
    reference rater, a rater or "human" (people's mean; the default where the chosen raters include people). bootstrap: draws of
    prompts behind each 95% interval, 0 for none. The lists are those of the module's head, a dictionary a row; `pairs`, `against`
    and `overall` rows hold what `agreement.agreement_of_two` and `agreement_of_all` return. With a single rater these are empty.

    Raises UserError: a folder of pairs, unknown names, no grades, several scales of one rater, or raters that share no pair of
    completions.

    >>> from mmpo.pipeline import read_feedback
    >>> rows = [
    ...     {"prompt": f"{n} + 1?", "completion": text, "score": score + shift * (n % 2), "rater": rater}
    ...     for n in range(12)
    ...     for text, score in ((f"{n + 1}.", 4), ("I know.", 2), ("No.", 1))
    ...     for rater, shift in (("ann", 0), ("bob", 1))
    ... ]
    >>> feedback = read_feedback(pa.Table.from_pylist(rows), scale=(1, 5))
    >>> [(row["first"], row["second"], row["accuracy"]) for row in agree(feedback, bootstrap=0)["pairs"]]
    [('ann', 'bob', 1.0)]
    """
    if bootstrap < 0 or seed < 0:
        name, value = ("--bootstrap", bootstrap) if bootstrap < 0 else ("--seed", seed)
        raise UserError(f"{name} {value}: must be a whole number from 0 up")
    table = feedback_table(feedback, "agree")
    chosen = choose_columns(table, evidence=evidence, kinds=kinds, raters=raters, aspects=aspects, against=against)
    return compared(table, chosen, bootstrap, seed, progress)


def compared(
    table: pa.Table, chosen: Chosen, bootstrap: int = 0, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """What `agree` returns, of the columns that were chosen of a FEEDBACK table. Raises UserError where raters share no completions."""
    margins, shown = read_margins(table, chosen), chosen.shown
    people = [i for i in shown if chosen.columns[i].kind == HUMAN]
    judges = [i for i in shown if chosen.columns[i].kind != HUMAN]
    tick = _ticker(progress, shown, chosen.reference)
    result: dict[str, Any] = {
        "prompts": margins.prompts,
        "units": len(margins.prompt),
        "aspects": chosen.aspects,
        "scale": chosen.scale,
        "yardstick": chosen.against,
        "bootstrap": bootstrap,
        "seed": seed,
        "raters": [rater_row(margins, i) for i in shown],
        "pairs": [row for i, j in combinations(shown, 2) if (row := tick(_pair, margins, i, j, bootstrap, seed))],
        "against": [row for i in shown if chosen.reference and (row := tick(_against, margins, i, bootstrap, seed))],
        "overall": {
            "all": (everyone := tick(_overall, margins, shown, bootstrap, seed)),
            "people": everyone if people == shown else tick(_overall, margins, people, bootstrap, seed),
            "judges": everyone if judges == shown else tick(_overall, margins, judges, bootstrap, seed),
        },
        "severity": severity_rows(margins),
        "position": [position_row(margins, i) for i in shown if chosen.columns[i].evidence == "comparisons"],
        "length": [{**length_row(margins, i), **(choosing_row(margins, i) if chosen.reference else {})} for i in shown],
        "calibration": [row for i in judges if (row := calibration_row(margins, i))],
        "consistency": [row for i in shown if (row := consistency_row(margins, i))],
    }
    if len(chosen.columns) > 1 and not result["pairs"] and not result["against"]:
        raise _nothing_shared(margins)
    return result


def _ticker(progress: Progress | None, shown: Sequence[int], reference: Sequence[int]) -> Callable[..., dict[str, Any] | None]:
    """Calls a comparison and says how many of all are done."""
    total = len(shown) * (len(shown) - 1) // 2 + (len(shown) if reference else 0) + 3
    done = count(1)

    def tick(work: Callable[..., dict[str, Any] | None], *arguments: Any) -> dict[str, Any] | None:
        row = work(*arguments)
        if progress is not None:
            progress("comparing", next(done), total)
        return row

    return tick


def _pair(margins: RaterMargins, one: int, other: int, bootstrap: int, seed: int) -> dict[str, Any] | None:
    """Two raters; None where they share no unit."""
    a, b, units = shared(margins, one, other)
    if not len(units):
        return None
    names = {"first": margins.chosen.columns[one].name, "second": margins.chosen.columns[other].name}
    return {**names, **agreement_of_two(a, b, margins.prompt[units], bootstrap, seed)}


def _against(margins: RaterMargins, column: int, bootstrap: int, seed: int) -> dict[str, Any] | None:
    """A rater against the reference rater and how many other raters make it; None where that is the rater itself or shares no
    unit."""
    mine, truth, units = against_reference(margins, column)
    if not len(units):
        return None
    who = margins.chosen.columns[column]
    others = len(set(margins.chosen.reference) - {column})
    return {
        "name": who.name,
        "kind": who.kind,
        "others": others,
        **agreement_of_two(mine, truth, margins.prompt[units], bootstrap, seed),
    }


def _overall(margins: RaterMargins, columns: Sequence[int], bootstrap: int, seed: int) -> dict[str, Any] | None:
    """All of several raters at once; None where no unit has two of them."""
    at = np.flatnonzero(np.isin(margins.column, columns))
    unit = margins.unit[at]
    if len(columns) < 2 or len(np.unique(unit)) == len(unit):
        return None
    order = np.argsort(unit, kind="stable")
    found = agreement_of_all(unit[order], margins.scaled[at][order], margins.prompt[unit[order]], bootstrap, seed)
    return {"raters": len(columns), **found}


def _nothing_shared(margins: RaterMargins) -> UserError:
    """The error where no two raters graded the same pair of completions under the same aspect."""
    described = []
    for i, column in enumerate(margins.chosen.columns[:6]):
        mine = margins.of(i)
        aspects = sorted({margins.chosen.aspects[a] for a in np.unique(margins.aspect[margins.unit[mine]])})
        described.append(f"{column.name} ({mine.stop - mine.start:,} pairs; aspects {', '.join(aspects) or 'none'})")
    return UserError(
        f"no two raters graded the same pair of completions under the same aspect: {'; '.join(described)}. Merge their grades with "
        "mmpo build A B --format feedback --feedback-only, and check that prompts, completions and aspects are the same"
    )
