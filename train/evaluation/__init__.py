"""A trained model measured on pairs, votes and benchmarks of reward models."""

from mmpo.train.evaluation.evaluate import Votes, evaluate
from mmpo.train.evaluation.suite_rows import suite_pairs
