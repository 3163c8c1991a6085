"""A training run: its folder, trainer, passes, checkpoints, callbacks. Entering the room refuses a transformers that it does not know,
before anything else of it is loaded: the trainer overrides methods that are not part of the documented interface
(`mmpo.train.training.checkpoints`), and with another release it might train something else.
"""
# ruff: noqa: E402

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

from mmpo.pipeline.errors import UserError

KNOWN_TRANSFORMERS = ">=5.18,<6"
"""As in pyproject.toml (a test holds them equal)."""


def check_transformers(installed: str | None = None) -> None:
    """Raises UserError unless the transformers that is installed (or the version given) is one that the trainer was tested with."""
    found = version("transformers") if installed is None else installed
    if not SpecifierSet(KNOWN_TRANSFORMERS).contains(found, prereleases=True):
        raise UserError(
            f"transformers {found} is installed, and training is known to work with {KNOWN_TRANSFORMERS} only: its trainer relies on "
            f"internals of that range. Install one of those: pip install 'transformers{KNOWN_TRANSFORMERS}'"
        )


check_transformers()

# isort: split
from mmpo.train.training.arguments import training_arguments
from mmpo.train.training.callbacks import Displacement, Throughput, TrainingProgress, displacement_of, fallen
from mmpo.train.training.passes import StepPasses
from mmpo.train.training.run import train_policy, train_reward
from mmpo.train.training.run_folder import RunFolder
from mmpo.train.training.trainer import MarginTrainer
from mmpo.train.training.trainers import PolicyTrainer, RewardTrainer, own_pad_token
from mmpo.train.training.watching import RunCallback
