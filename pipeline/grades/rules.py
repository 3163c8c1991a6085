"""What decides which pairs come out of a batch, and what comes out: the two records that the pairing stages share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmpo.pipeline.grades.position_bias import PositionBias
from mmpo.pipeline.grades.rater_effects import RaterEffect

__all__ = ["Margins", "PairRules"]


@dataclass(frozen=True)
class PairRules:
    """What decides which pairs come out: see `mmpo build --help`. score: "mean" or weights by aspect.

    position, effects: what a first pass over the whole input found, by (rater, aspect) and by rater; empty before it and where none is
    needed.
    """

    evidence: str = "ratings"
    score: dict[str, float] | str = "mean"
    merge_raters: str = "mean"
    one_order: str = "drop"
    rank: bool = False
    strategy: str = "all"
    max_per_prompt: int | None = None
    min_margin: float = 0.0
    ties: str = "keep"
    max_chars: int | None = None
    seed: int = 0
    position: Mapping[tuple[str, str], PositionBias] = field(default_factory=dict)
    effects: Mapping[str, RaterEffect] = field(default_factory=dict)

    def learned(self) -> dict[str, Any]:
        """{"position_bias": {"rater/aspect": ...}, "rater_effects": {rater: ...}} as the manifest keeps it; without what is empty."""
        position = {f"{rater}/{aspect}": bias.as_json() for (rater, aspect), bias in self.position.items()}
        effects = {name: effect.as_json() for name, effect in self.effects.items()}
        return {name: value for name, value in (("position_bias", position), ("rater_effects", effects)) if value}


@dataclass
class Margins:
    """Chosen pairs as positions in the batch's completions, all arrays of shape (pairs,); counts by unit and reason."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    score_chosen: np.ndarray
    score_rejected: np.ndarray
    quality_margin: np.ndarray
    margin_se: np.ndarray
    preferring: np.ndarray
    raters: np.ndarray
    kind: np.ndarray
    kinds: list[str]
    created: int = 0
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    evidence: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    merged_grades: int = 0
    used_grades: int = 0
