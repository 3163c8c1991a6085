"""What a model is measured by: accuracy, calibration, RewardBench; pure numpy."""

from mmpo.pipeline.metrics.calibration import by_margin, cross_entropy, ece_vote
from mmpo.pipeline.metrics.measures import by_source, pair_measures, training_metrics
from mmpo.pipeline.metrics.rewardbench import (
    REWARDBENCH_COUNTS,
    rewardbench_average,
    rewardbench_sections,
    rewardbench_subsets,
    subset_accuracies,
)

__all__ = [
    "REWARDBENCH_COUNTS",
    "by_margin",
    "by_source",
    "cross_entropy",
    "ece_vote",
    "pair_measures",
    "rewardbench_average",
    "rewardbench_sections",
    "rewardbench_subsets",
    "subset_accuracies",
    "training_metrics",
]
