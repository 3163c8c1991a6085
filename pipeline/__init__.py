"""Feedback in, margin-annotated preference pairs out: the tables, the sources, the stages, the store and its checks."""

from mmpo.pipeline.api import build_pairs, load_feedback, load_pairs, read_feedback, write_dataset
from mmpo.pipeline.build import BuildOptions, build
from mmpo.pipeline.errors import MmpoError, PartialResult, UserError
from mmpo.pipeline.margins import target_probability
from mmpo.pipeline.storage import to_dataset, to_pandas
from mmpo.pipeline.tables import FEEDBACK, PAIRS, completion_id, prompt_id
from mmpo.pipeline.validate import validate

__all__ = [
    "FEEDBACK",
    "PAIRS",
    "BuildOptions",
    "MmpoError",
    "PartialResult",
    "UserError",
    "build",
    "build_pairs",
    "completion_id",
    "load_feedback",
    "load_pairs",
    "prompt_id",
    "read_feedback",
    "target_probability",
    "to_dataset",
    "to_pandas",
    "validate",
    "write_dataset",
]
