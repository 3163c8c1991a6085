"""What is known of the margins of pairs already: for choosing which deserve human eyes, and for suggestions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.annotate.rows import share_of_scale
from mmpo.pipeline.api import build_pairs
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import GradeGroup
from mmpo.pipeline.tables import metadata

AI = ("ai", "reward_model", "mixed")


@dataclass(frozen=True)
class KnownMargin:
    """What is known of a pair: its margin toward the completion `better`, in score points; se: its standard error.

    minority: the share of raters on the other side, ties half; kind: of the evidence.
    """

    better: str
    margin: float
    se: float | None
    minority: float
    raters: int
    kind: str

    def toward(self, first: str) -> float:
        """The margin, positive where `first` is the better one."""
        return self.margin if first == self.better else -self.margin if self.margin else 0.0


KnownMargins = Mapping[frozenset[str], KnownMargin]


@dataclass(frozen=True)
class SuggestionMargins:
    """AI margins of one aspect, for suggestions. scores: mean and standard deviation of AI ratings as shares of their scale.

    full: the widest possible margin, None where the scale has no end; width: the same in the units in which the grades were given.
    """

    margins: Mapping[tuple[str, frozenset[str]], KnownMargin]
    scores: Mapping[tuple[str, str], tuple[float, float | None]]
    full: float | None
    width: float | None
    agent: str

    def much_better(self, given: float | None) -> float | None:
        """The margin that is worth "much better": as given, in the grades' own units, else the widest; None where nothing says."""
        if given is None or self.full is None:
            return self.full if given is None else given
        return None if self.width is None else given * self.full / self.width


def known_of(row: Mapping[str, Any]) -> KnownMargin:
    """What a row of PAIRS says of its pair."""
    raters = max(row["raters"] or 1, 1)
    minority = min(max(raters - (row["preferring"] or 0), 0) / raters, 0.5)
    return KnownMargin(row["chosen_id"], row["quality_margin"], row["margin_se"], minority, raters, row["kind"] or "")


def full_of_pairs(table: pa.Table) -> float | None:
    """The widest possible margin of a PAIRS table by what stands beside it, None where that does not say."""
    about = metadata(table.schema)
    if about.get("normalisation") in ("minmax", "rank"):
        return 1.0
    scales = about.get("scales") or []
    if about.get("normalisation") != "none" or len(scales) != 1 or None in scales[0]:
        return None
    low, high = scales[0]
    return float(high) if table["score_chosen"].null_count == table.num_rows else float(high - low)


def feedback_margins(
    names: pa.Table, groups: Sequence[GradeGroup]
) -> tuple[dict[tuple[str, frozenset[str]], KnownMargin], list[GradeGroup], bool]:
    """What these groups of grades say of each pair, those of them that say it, and whether margins are shares of bounded scales.

    Comparisons, where there are any, else differences of ratings: the first are margins already.
    """
    if not groups:
        return {}, [], False
    evidence = "comparisons" if any(group.table == "comparisons" for group in groups) else "ratings"
    used = [group for group in groups if group.table == evidence]
    bounded = all(group.low is not None and group.high is not None and group.low < group.high for group in used)
    pairs = build_pairs(
        names, evidence=evidence, normalise="minmax" if bounded else "zscore", kinds=sorted({group.kind for group in used}),
        raters=sorted({group.rater for group in used}), aspects=sorted({group.aspect for group in used}),
    )  # fmt: skip
    columns = ["prompt_id", "chosen_id", "rejected_id", "quality_margin", "margin_se", "preferring", "raters", "kind"]
    found = {
        (row["prompt_id"], frozenset((row["chosen_id"], row["rejected_id"]))): known_of(row)
        for row in pairs.select(columns).to_pylist()
    }
    return found, used, bounded


def feedback_hints(names: pa.Table, groups: Sequence[GradeGroup], aspect: str, *, alone: bool) -> SuggestionMargins:
    """Margins of an aspect by AI's groups of grades; of all aspects where it is the only one asked and no AI graded it by that name."""
    if not groups:
        raise UserError(
            "--suggest shows AI margins, and no judge or reward model graded anything here: run `mmpo judge` first, or leave it out"
        )
    there = sorted({group.aspect for group in groups})
    if aspect not in there and not alone:
        raise unknown_name("aspect that an AI graded (--aspects with --suggest)", aspect, there)
    groups = [group for group in groups if aspect not in there or group.aspect == aspect]
    margins, used, bounded = feedback_margins(names, groups)
    widths = {(group.high or 0.0) - (group.low or 0.0) for group in used}
    # A comparison's scale is named by ±limit, and the limit is its widest margin.
    width = widths.pop() / (2 if used[0].table == "comparisons" else 1) if bounded and len(widths) == 1 else None
    agent = " ".join(sorted({group.rater for group in used}))
    return SuggestionMargins(margins, _scores(names, groups), 1.0 if bounded else None, width, agent)


def _scores(names: pa.Table, groups: Sequence[GradeGroup]) -> dict[tuple[str, str], tuple[float, float | None]]:
    """The mean rating of each completion as a share of its scale, and the standard deviation of those ratings (None: one only)."""
    by = {(group.kind, group.rater, group.aspect) for group in groups}
    found: dict[tuple[str, str], list[float]] = {}
    for row in names.select(["prompt_id", "completions", "ratings"]).to_pylist():
        for grade in row["ratings"] or ():
            share = share_of_scale(grade)
            if (grade["kind"], grade["rater"], grade["aspect"]) in by and share is not None:
                found.setdefault((row["prompt_id"], row["completions"][grade["completion"]]["id"]), []).append(share)
    return {
        key: (float(np.mean(shares)), float(np.std(shares, ddof=1)) if len(shares) > 1 else None) for key, shares in found.items()
    }
