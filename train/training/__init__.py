"""A training run: its folder, trainer, passes, checkpoints, callbacks. Entering the room refuses a transformers that it does not know,
before anything else of it is loaded.
"""
# ruff: noqa: E402

from mmpo.train.training.versions import check_transformers

check_transformers()

# isort: split
from mmpo.train.training.arguments import training_arguments
from mmpo.train.training.callbacks import Displacement, Throughput, TrainingProgress, displacement_of, fallen
from mmpo.train.training.passes import StepPasses
from mmpo.train.training.policy import PolicyTrainer
from mmpo.train.training.reward import RewardTrainer, own_pad_token
from mmpo.train.training.run import resolve_gamma, train_policy, train_reward
from mmpo.train.training.run_folder import RunFolder
from mmpo.train.training.trainer import MarginTrainer
