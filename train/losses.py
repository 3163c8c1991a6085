"""The public name of the table of losses, `mmpo.train.losses.LOSSES`; they live in `mmpo.train.objective.losses`."""

from mmpo.train.objective import LOSSES, Loss

__all__ = ["LOSSES", "Loss"]
