"""What decides which prompts are left out for their texts, and what a filter says of those that it leaves out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmpo.pipeline.filters.contamination import SHARE, EvaluationPrompts

SIMILARITY, SHINGLE = 0.8, 5
"""What Lee et al. 2022 (arXiv 2107.06499) take for near-duplicates: a Jaccard similarity of .8 of runs of five words."""
CONFIDENCE = 0.5


class Verdict(NamedTuple):
    """What a filter leaves out: a mask, shape (rows,), and the evidence of each row that it leaves out, in order."""

    out: np.ndarray
    details: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class PromptRules:
    """See `mmpo build --help`; evaluation: what prompts are held against, where anything."""

    duplicates: tuple[str, ...] = ()
    similarity: float = SIMILARITY
    shingle: int = SHINGLE
    languages: tuple[str, ...] = ()
    language_confidence: float = CONFIDENCE
    evaluation: EvaluationPrompts | None = None
    decontaminate_share: float = SHARE

    @property
    def compares(self) -> list[str]:
        """What prompts are compared with: those of the whole input, those of other splits."""
        return [name for name in ("prompts", "splits") if name in self.duplicates]

    @property
    def any(self) -> bool:
        """Whether prompts are looked at before pairs are made of them."""
        return bool(self.languages or self.evaluation or self.compares)

    def metadata(self) -> dict[str, Any]:
        """What the manifest keeps of it beside the options: which files evaluation prompts came from."""
        return {"decontaminated_against": self.evaluation.files} if self.evaluation else {}
