"""Training on quality margins: objectives, exact steps over whole prompts, policies and reward models, their evaluation.

Importing this package imports no torch; its names load what they need when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpo.train.evaluation.evaluate import evaluate
    from mmpo.train.options import TrainOptions
    from mmpo.train.training.policy import PolicyTrainer
    from mmpo.train.training.reward import RewardTrainer
    from mmpo.train.training.run import train_policy, train_reward

__all__ = ["PolicyTrainer", "RewardTrainer", "TrainOptions", "evaluate", "train_policy", "train_reward"]

_HOMES = {
    "PolicyTrainer": "mmpo.train.training.policy",
    "RewardTrainer": "mmpo.train.training.reward",
    "TrainOptions": "mmpo.train.options",
    "evaluate": "mmpo.train.evaluation.evaluate",
    "train_policy": "mmpo.train.training.run",
    "train_reward": "mmpo.train.training.run",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'mmpo.train' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
