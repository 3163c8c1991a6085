"""What AI says of pairs and replies, as suggestions for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmpo.annotate.rows import share_of_scale
from mmpo.annotate.select import KnownMargin, feedback_margins
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import GradeGroup
from mmpo.pipeline.tables import metadata

AI = ("ai", "reward_model", "mixed")


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
