"""A trained model measured on pairs, votes and benchmarks of reward models."""

from mmpo.train.evaluation.as_trained import options_as_trained, trained_part_of, trained_reference_weights
from mmpo.train.evaluation.evaluate import Votes, evaluate
from mmpo.train.evaluation.pair_values import trained_reference
from mmpo.train.evaluation.suite_rows import suite_pairs
