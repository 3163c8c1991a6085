"""Raters at a glance, for a dataset's page: each beside the mean of the others, aspects beside one another, and who said what of a pair.

The statistics are those of `agree`; what grows with the square of the raters is left out, so that a thousand of them cost what thirty do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.annotate.agreement.against import against_reference
from mmpo.annotate.agreement.columns import choose_columns
from mmpo.annotate.agreement.margins import DECIMALS, RaterMargins, read_margins
from mmpo.annotate.agreement.raters import consistency_row, longer_preferred, position_row, severity_rows
from mmpo.annotate.agreement.statistics import agreement_of_all, agreement_of_two
from mmpo.pipeline.api import feedback_table
from mmpo.pipeline.arrow import flat, large
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades import merge_prompts
from mmpo.pipeline.metrics import FEWEST_CLUSTERS, student

MOST, WORST, LEAST = 30, 10, 20
"""Raters that are measured: those with the most grades, and those that agree least among the ones with so many shared pairs."""
BUSIEST = 10
ASPECTS = 8
"""Aspects that are set beside one another."""
DRAWN = 30_000_000
"""Units times draws, at most; never fewer draws than FEWEST_DRAWS."""
DRAWS, FEWEST_DRAWS = 400, 100


@dataclass(frozen=True)
class RaterOverview:
    """What `rater_overview` found.

    raters: a row for each of those that are named. name, kind; grades, share: how many, and of all grades; pairs: that it says
    something of; ties, longer: shares of them; agrees, agrees_95: of the pairs that neither calls a tie (`decided` of them) the
    share in which it sides with the mean of the others; spearman, spearman_95; severity, severity_95: score points below what
    others give to the same; first, first_95: lean toward the reply shown first over the pairs seen in both orders, in score
    points; flips: share of verdicts that change with the order; same, same_95: of the questions asked again (`again` of them) the
    share that got the same grade. None: there is nothing to say it from.
    counted: how many raters there are; busiest: share of the grades that the BUSIEST of them gave; against: whom they are
    measured by, people or raters; overall: `agreement_of_all`, or None; aspects: by what the same rater says of the same pair, of
    every two {"first", "second", "pairs", "decided", "contradict", "contradict_95", "spearman", "spearman_95"}; named: all
    aspects; measured: those of them that raters and overall are of.
    """

    raters: list[dict[str, Any]]
    counted: int
    busiest: float
    against: str
    overall: dict[str, Any] | None
    aspects: list[dict[str, Any]]
    named: list[str]
    measured: list[str]
    margins: RaterMargins
    ids: pa.Array

    def of_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[list[dict[str, Any]]]:
        """Who said what of each pair of completion ids: {"rater", "aspect", "margin"} in score points, above 0: for the first."""
        wanted = pa.array(sorted({one for pair in pairs for one in pair}), pa.string())
        place = pc.index_in(wanted, value_set=self.ids.cast(pa.string()))
        at = dict(zip(wanted.to_pylist(), place.to_pylist(), strict=True))
        size = len(self.ids)
        of_unit = self.margins.low * size + self.margins.high
        order = np.argsort(self.margins.unit, kind="stable")
        units = self.margins.unit[order]
        found = []
        for one, other in pairs:
            first, second = at[one], at[other]
            rows: list[dict[str, Any]] = []
            if first is not None and second is not None:
                low, high = np.searchsorted(of_unit, (key := min(first, second) * size + max(first, second), key + 1))
                start, end = np.searchsorted(units, (low, high))
                sign = 1.0 if first < second else -1.0
                for row in order[start:end].tolist():
                    chosen = self.margins.chosen
                    rows.append(
                        {
                            "rater": chosen.columns[int(self.margins.column[row])].name,
                            "aspect": chosen.aspects[int(self.margins.aspect[self.margins.unit[row]])],
                            "margin": sign * float(self.margins.raw[row]) + 0.0,
                        }
                    )
            found.append(rows)
        return found


def rater_overview(
    feedback: str | Path | pa.Table,
    *,
    kinds: Sequence[str] | None = None,
    raters: Sequence[str] | None = None,
    aspects: Sequence[str] = (),
    evidence: str = "auto",
    seed: int = 0,
) -> RaterOverview:
    """What a page says of raters; feedback: a FEEDBACK folder, or a table of that schema; kinds, raters narrow it; aspects, evidence:
    what raters are measured by, where not all that they graded counts. Raises UserError where there is no grade, and where one rater
    grades one aspect on several scales."""
    table, _ = merge_prompts(large(feedback_table(feedback, "rater_overview")).combine_chunks())
    everything = _margins_of(table, kinds=kinds, raters=raters)
    counting = [one for one in everything.chosen.aspects if one in aspects] or everything.chosen.aspects
    apart = len(counting) < len(everything.chosen.aspects) or any(one.evidence != evidence for one in everything.chosen.columns)
    margins = _margins_of(table, kinds=kinds, raters=raters, aspects=counting, evidence=evidence) if apart else everything
    chosen = margins.chosen
    draws = max(FEWEST_DRAWS, min(DRAWS, DRAWN // max(len(margins.prompt), 1)))
    grades = np.zeros(len(chosen.columns), dtype=np.int64)
    for found in margins.raw_grades.values():
        grades += np.bincount(found.column, minlength=len(grades))
    severity = {row["name"]: row for row in severity_rows(margins)}
    measured = _measured(margins, grades)
    rows = [_row(margins, one, grades, severity, draws, seed) for one in measured]
    return RaterOverview(
        rows, len(chosen.columns), float(np.sort(grades)[::-1][:BUSIEST].sum() / grades.sum()),
        "people" if chosen.against else "raters", _overall(margins, draws, seed),
        _aspect_rows(everything, draws, seed), everything.chosen.aspects, chosen.aspects, everything,
        flat(table["completions"]).flatten().field("id"),
    )  # fmt: skip


def _margins_of(table: pa.Table, **narrowed: Any) -> RaterMargins:
    chosen = choose_columns(table, **narrowed)
    # people are measured by the other people, and so are judges where there are people; else all by all
    return read_margins(table, replace(chosen, reference=chosen.reference or chosen.shown))


def _measured(margins: RaterMargins, grades: np.ndarray) -> list[int]:
    """The raters that are named, most grades first."""
    by_grades = np.argsort(-grades, kind="stable")
    named = by_grades[:MOST].tolist()
    if len(grades) > MOST:
        n = np.bincount(margins.unit, minlength=len(margins.prompt))[margins.unit]
        total = np.bincount(margins.unit, margins.scaled, minlength=len(margins.prompt))[margins.unit]
        others = np.round((total - margins.scaled) / np.maximum(n - 1, 1), DECIMALS)
        decided = (n > 1) & (margins.scaled != 0) & (others != 0)
        size = len(grades)
        shared = np.bincount(margins.column, decided, minlength=size)
        right = np.bincount(margins.column, decided & (np.sign(margins.scaled) == np.sign(others)), minlength=size)
        share = np.where(shared >= LEAST, right / np.maximum(shared, 1), np.inf)
        worst = [one for one in np.argsort(share, kind="stable").tolist() if np.isfinite(share[one]) and one not in named]
        named += worst[:WORST]
    return named


def _row(
    margins: RaterMargins, column: int, grades: np.ndarray, severity: dict[str, dict[str, Any]], draws: int, seed: int
) -> dict[str, Any]:
    who, mine = margins.chosen.columns[column], margins.of(column)
    scaled = margins.scaled[mine]
    row: dict[str, Any] = {
        "name": who.name, "kind": who.kind, "grades": int(grades[column]), "share": float(grades[column] / grades.sum()),
        "pairs": len(scaled),
        "ties": float((scaled == 0).mean()) if len(scaled) else None,
        "longer": longer_preferred(scaled, margins.log_length[margins.unit[mine]]),
        "decided": 0, **dict.fromkeys(("agrees", "agrees_95", "spearman", "spearman_95")),
    }  # fmt: skip
    own, others, units = against_reference(margins, column)
    if len(units):
        found = agreement_of_two(own, others, margins.prompt[units], draws, seed)
        row |= {"decided": found["decided"], "agrees": found["accuracy"], "agrees_95": found["accuracy_95"]}
        row |= {name: found[name] for name in ("spearman", "spearman_95")}
    strict = severity.get(who.name, {})
    row |= {
        "severity": strict.get("severity"),
        "severity_95": _around(strict.get("severity"), strict.get("se"), strict.get("shared")),
    }
    place = position_row(margins, column)
    lean = place["toward_first"] if place["orders"] == "both" else None  # of one order alone position can't be told from merit
    row |= {"first": lean, "first_95": _around(lean, place["se"], place["prompts"]), "flips": place["flips"]}
    again = consistency_row(margins, column) or {}
    return row | {"same": again.get("equal"), "same_95": again.get("equal_95"), "again": again.get("items", 0)}


def _around(value: float | None, se: float | None, clusters: int | None) -> list[float] | None:
    """The 95% interval of a mean of so many independent clusters; None of few."""
    if value is None or se is None or clusters is None or clusters < FEWEST_CLUSTERS:
        return None
    reach = student(clusters - 1) * se
    return [value - reach, value + reach]


def _overall(margins: RaterMargins, draws: int, seed: int) -> dict[str, Any] | None:
    """All raters at once; None where no pair has two of them."""
    order = np.argsort(margins.unit, kind="stable")
    unit = margins.unit[order]
    if len(np.unique(unit)) == len(unit):
        return None
    return agreement_of_all(unit, margins.scaled[order], margins.prompt[unit], draws, seed)


def _aspect_rows(margins: RaterMargins, draws: int, seed: int) -> list[dict[str, Any]]:
    aspect = margins.aspect[margins.unit]
    sizes = np.bincount(aspect, minlength=len(margins.chosen.aspects))
    used = sorted(np.argsort(-sizes, kind="stable")[:ASPECTS].tolist())
    _, pair = np.unique(margins.low * (int(margins.high.max(initial=0)) + 1) + margins.high, return_inverse=True)
    said = margins.column * (int(pair.max(initial=0)) + 1) + pair.reshape(-1)[margins.unit]
    rows = []
    for one, other in combinations(used, 2):
        a, b = (np.flatnonzero(aspect == which) for which in (one, other))
        _, left, right = np.intersect1d(said[a], said[b], assume_unique=True, return_indices=True)
        if not len(left):
            continue
        a, b = a[left], b[right]
        prompt = margins.prompt[margins.unit[a]]
        found = agreement_of_two(margins.scaled[a], margins.scaled[b], prompt, draws, seed)
        share, bounds = found["accuracy"], found["accuracy_95"]
        rows.append(
            {
                "first": margins.chosen.aspects[one], "second": margins.chosen.aspects[other], "pairs": found["units"],
                "decided": found["decided"], "contradict": None if share is None else 1 - share,
                "contradict_95": bounds and [1 - bounds[1], 1 - bounds[0]],
                "spearman": found["spearman"], "spearman_95": found["spearman_95"],
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -(row["contradict"] or 0.0))


def overview_or_reason(feedback: str | Path | pa.Table, **chosen: Any) -> tuple[RaterOverview | None, str]:
    """`rater_overview`, or why there is none, in words."""
    try:
        return rater_overview(feedback, **chosen), ""
    except UserError as error:
        return None, str(error)
