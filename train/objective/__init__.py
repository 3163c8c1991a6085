"""What is minimised: losses, terms, targets. Importing this room imports no torch; `Objective` and what it is made of do."""

from typing import TYPE_CHECKING, Any

from mmpo.train.objective.controls import CONTROLS, check_control, controlled
from mmpo.train.objective.lists import Lists
from mmpo.train.objective.losses import LOSSES, TERMS, Loss
from mmpo.train.objective.targets import TARGETS, LevelTarget, fit_target, targets
from mmpo.train.objective.terms import (
    check_policy_terms,
    check_reward_terms,
    parse_terms,
    reads_gamma,
    reads_targets,
    write_options,
    write_terms,
)

if TYPE_CHECKING:
    from mmpo.train.objective.objective import Logits, Objective, Totals, pair_totals


def __getattr__(name: str) -> Any:
    if name not in ("Logits", "Objective", "Totals", "pair_totals"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmpo.train.objective import objective

    return getattr(objective, name)
