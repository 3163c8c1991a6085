"""The public name of the table of losses, `mmpo.train.losses.LOSSES`, and of all that `--loss` takes, `TERMS`."""

from typing import Any

from mmpo.train.objective import LOSSES, SFT_SUMMARY, Loss

__all__ = ["LOSSES", "TERMS", "Loss"]

TERMS: dict[str, Any] = {**LOSSES, "sft": SFT_SUMMARY}
"""What an objective may be made of: the losses of pairs, and `sft` of the chosen completion alone."""
