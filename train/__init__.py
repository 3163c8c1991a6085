"""Training on quality margins: objectives, exact steps over whole prompts, policies and reward models, their evaluation.

Importing this package imports no torch; its names load what they need when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpo.train.advise import completion_features
    from mmpo.train.evaluation import evaluate
    from mmpo.train.inference import LocalModel, local_models
    from mmpo.train.options import TrainOptions
    from mmpo.train.release import merge
    from mmpo.train.scoring import score
    from mmpo.train.training import PolicyTrainer, RewardTrainer, RunCallback, train_policy, train_reward

__all__ = [
    "LocalModel",
    "PolicyTrainer",
    "RewardTrainer",
    "RunCallback",
    "TrainOptions",
    "completion_features",
    "evaluate",
    "local_models",
    "merge",
    "score",
    "train_policy",
    "train_reward",
]

_ROOMS = {
    "TrainOptions": "options",
    "LocalModel": "inference",
    "local_models": "inference",
    "evaluate": "evaluation",
    "merge": "release",
    "score": "scoring",
    "completion_features": "advise",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'mmpo.train' has no attribute {name!r}")
    from mmpo.pipeline.sources import uncollected  # imported here: the package loads pyarrow

    with uncollected():  # a sixth of importing transformers was to look for garbage in it
        return getattr(import_module(f"mmpo.train.{_ROOMS.get(name, 'training')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
