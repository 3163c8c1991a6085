"""From one value per completion to PAIRS: which pairs, their margins and errors, filters, splits."""

from mmpo.pipeline.pairs.choose import own_gaps
from mmpo.pipeline.pairs.splits import split_position
from mmpo.pipeline.pairs.strategies import STRATEGIES

__all__ = ["STRATEGIES", "own_gaps", "split_position"]
