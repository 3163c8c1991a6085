"""What decides which pairs come out of a batch, and what comes out: the two records that the pairing stages share."""

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Margins", "PairRules"]


@dataclass(frozen=True)
class PairRules:
    """What decides which pairs come out: see `mmpo build --help`. score: "mean" or weights by aspect."""

    evidence: str = "ratings"
    score: dict[str, float] | str = "mean"
    merge_raters: str = "mean"
    rank: bool = False
    strategy: str = "all"
    max_per_prompt: int | None = None
    min_margin: float = 0.0
    ties: str = "keep"
    max_chars: int | None = None
    seed: int = 0


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
