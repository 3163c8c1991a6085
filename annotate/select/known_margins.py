"""What is known of the margins of pairs already: for choosing which deserve human eyes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mmpo.annotate.calibrate.run import is_calibrated
from mmpo.pipeline.api import build_pairs
from mmpo.pipeline.errors import unknown_name
from mmpo.pipeline.grades import GradeGroup

HUMAN = "human"
"""All people, as whose grades are wanted."""


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
PairKey = tuple[str, frozenset[str]]
"""A prompt's id and those of two of its completions."""


@dataclass(frozen=True)
class GradedPairs:
    """What is known by whom, by pair. people: of those whose grades are wanted; others: of everybody else; graders: of each of those who
    are compared with one another; nameless: they are of PAIRS, which do not say who graded."""

    people: Mapping[PairKey, KnownMargin]
    others: Mapping[PairKey, KnownMargin]
    graders: Mapping[str, Mapping[PairKey, KnownMargin]]
    nameless: bool = False


def known_of(row: Mapping[str, Any]) -> KnownMargin:
    """What a row of PAIRS says of its pair."""
    raters = max(row["raters"] or 1, 1)
    minority = min(max(raters - (row["preferring"] or 0), 0) / raters, 0.5)
    return KnownMargin(row["chosen_id"], row["quality_margin"], row["margin_se"], minority, raters, row["kind"] or "")


def feedback_margins(names: pa.Table, groups: Sequence[GradeGroup]) -> tuple[dict[PairKey, KnownMargin], list[GradeGroup], bool]:
    """What these groups of grades say of each pair, those of them that say it, and whether margins are shares of bounded scales.

    Comparisons, where there are any, else differences of ratings: the first are margins already.
    """
    if not groups:
        return {}, [], False
    evidence = "comparisons" if any(group.table == "comparisons" for group in groups) else "ratings"
    used = [group for group in groups if group.table == evidence]
    bounded = all(group.low is not None and group.high is not None and group.low < group.high for group in used)
    aspects = sorted({group.aspect for group in used})
    pairs = build_pairs(
        names, score="overall" if "overall" in aspects else "mean", evidence=evidence, normalise="minmax" if bounded else "zscore",
        kinds=sorted({group.kind for group in used}), raters=sorted({group.rater for group in used}), aspects=aspects,
    )  # fmt: skip
    columns = ["prompt_id", "chosen_id", "rejected_id", "quality_margin", "margin_se", "preferring", "raters", "kind"]
    found = {
        (row["prompt_id"], frozenset((row["chosen_id"], row["rejected_id"]))): known_of(row)
        for row in pairs.select(columns).to_pylist()
    }
    return found, used, bounded


def graded_pairs(
    names: pa.Table, groups: Sequence[GradeGroup], to: Sequence[str], raters: Sequence[str] | None, *, by_models: bool = True
) -> GradedPairs:
    """Who says what of FEEDBACK. groups: its grades; to: "human", or raters by name; raters: who is compared, default the reward models, or
    the judges with them where those are fewer than two; by_models: False where nobody will look at more than people's grades, and what
    others say need not be worked out. Raises UserError for names that are not there."""
    known = sorted({group.rater for group in groups})
    for flag, given in (("--to", [name for name in to if name != HUMAN]), ("--rater", raters or ())):
        for name in given:
            if name not in known:
                raise unknown_name(flag, name, [*([HUMAN] if flag == "--to" else []), *known[:40]])
    people = [group for group in groups if group.rater in to or (HUMAN in to and group.kind == HUMAN)]
    others = [group for group in groups if group not in people] if by_models else []
    compared = [group for group in others if group.rater in raters] if raters else _models(others)
    each = {name: [group for group in compared if group.rater == name] for name in sorted({group.rater for group in compared})}
    return GradedPairs(
        {key: one for table in ("ratings", "comparisons") for key, one in _of_table(names, people, table).items()},
        feedback_margins(names, others)[0],
        {name: feedback_margins(names, mine)[0] for name, mine in each.items()},
    )


def _models(groups: Sequence[GradeGroup]) -> list[GradeGroup]:
    """Who is compared where nobody is named; calibrated graders are no graders beside those that they were made of."""
    raters = {group.rater for group in groups}
    groups = [group for group in groups if not is_calibrated(group.rater, raters)]
    models = [group for group in groups if group.kind == "reward_model"]
    return models if len({group.rater for group in models}) > 1 else [group for group in groups if group.kind != HUMAN]


def _of_table(names: pa.Table, groups: Sequence[GradeGroup], table: str) -> dict[PairKey, KnownMargin]:
    return feedback_margins(names, [group for group in groups if group.table == table])[0]
