"""A training run: its folder, trainer, passes, checkpoints, callbacks. Importing any of it refuses a transformers that it does not know."""

from mmpo.train.training.versions import check_transformers

__all__: list[str] = []

check_transformers()
