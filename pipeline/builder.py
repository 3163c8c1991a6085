"""The older name of what formats of one's own import: `BadRow` and the builder now live in `mmpo.pipeline.sources`."""

from mmpo.pipeline.sources import KINDS, BadRow, FeedbackBuilder

__all__ = ["KINDS", "BadRow", "FeedbackBuilder"]
