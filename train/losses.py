"""The public name of the table of losses, `mmpo.train.losses.LOSSES`, and of all that `--loss` takes, `TERMS`."""

from mmpo.train.objective import LOSSES, TERMS, Loss

__all__ = ["LOSSES", "TERMS", "Loss"]
