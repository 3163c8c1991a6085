"""FEEDBACK to one value per rater and completion: which grades, normalised, merged, with rater and position effects."""

from mmpo.pipeline.grades.aggregate import (
    RATER_MERGERS,
    Grades,
    group_starts,
    merge_raters,
    merge_repeats,
    places,
    run_means,
    run_sizes,
    runs,
)
from mmpo.pipeline.grades.answers import drop_thinking
from mmpo.pipeline.grades.merge import merge_prompts
from mmpo.pipeline.grades.normalise import NORMALISATIONS
from mmpo.pipeline.grades.position_bias import OrderTotals, exact_sum, position_biases
from mmpo.pipeline.grades.rater_effects import RaterEffect, RaterSample, fit_rater_effects, remove_effects, shrunk, without_signal
from mmpo.pipeline.grades.rounding import from_origin, origin_of
from mmpo.pipeline.grades.rules import in_sample
from mmpo.pipeline.grades.statistics import NO_GRADES, GradeGroup, grade_statistics
