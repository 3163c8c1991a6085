"""A trained model measured on pairs, votes and RewardBench."""

from mmpo.train.evaluation.evaluate import Votes, evaluate
from mmpo.train.evaluation.rewardbench import rewardbench_pairs
