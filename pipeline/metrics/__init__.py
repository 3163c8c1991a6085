"""What a model is measured by: measures of pairs with their intervals, fits of γ to votes, and the benchmarks of reward models."""

from mmpo.pipeline.metrics.calibration import (
    BINS,
    SAME,
    Parts,
    accuracy,
    brier,
    by_margin,
    cross_entropy,
    ece_label,
    ece_target,
    ece_vote,
    folded,
    nll,
    reliability,
    soft_brier,
    temperature_fit,
)
from mmpo.pipeline.metrics.gamma_fit import GammaFit, fit_gamma
from mmpo.pipeline.metrics.intervals import (
    FEWEST_CLUSTERS,
    NORMAL,
    cluster_counts,
    interval,
    mean_interval,
    part_draws,
    ratio_intervals,
    share_interval,
    student,
)
from mmpo.pipeline.metrics.rewardbench import (
    REWARDBENCH_COUNTS,
    rewardbench_average,
    rewardbench_sections,
    rewardbench_subsets,
    subset_accuracies,
)
from mmpo.pipeline.metrics.suites import (
    SUITES,
    ScoredRow,
    check_columns,
    file_rows,
    listed_texts,
    no_suite,
    suite_like,
    suite_measures,
    suite_scores,
    suite_warnings,
)
from mmpo.pipeline.metrics.summary import MOST_TEMPERATURE, against_other, evaluation_measures, measures_95
from mmpo.pipeline.metrics.table import METRICS, Metric, Values, by_source, pair_measures, training_metrics
from mmpo.pipeline.metrics.votes import Votes
