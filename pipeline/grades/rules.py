"""What is done to grades and pairs, as one record that the stages share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmpo.pipeline.grades.position_bias import PositionBias
from mmpo.pipeline.grades.rater_effects import RaterEffect


@dataclass(frozen=True)
class PairRules:
    """What decides which pairs come out: see `mmpo build --help`. evidence: "ratings" or "comparisons"; score: see `parse_score`.

    position, effects: what a first pass over the whole input found, by (rater, aspect) and by rater; empty before it and where none is
    needed.
    """

    evidence: str = "ratings"
    score: dict[str, float] | str = "mean"
    normalise: str = "none"
    merge_raters: str = "mean"
    one_order: str = "drop"
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
