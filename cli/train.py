"""`mmpo train policy|reward`: one flag for every field of TrainOptions."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from mmpo.cli.flags import options_from, with_flags
from mmpo.cli.output import print_json, say, shown
from mmpo.pipeline.errors import UserError
from mmpo.train.options import TrainOptions

__all__ = ["Kind", "train"]


class Kind(StrEnum):
    """What is trained."""

    policy = "policy"
    reward = "reward"


@with_flags(TrainOptions, without=("kind",))
def train(
    kind: Annotated[Kind, typer.Argument(help="policy (a causal language model) or reward (a scorer).")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
    given: dict[str, Any],
) -> None:
    """Train a policy or a reward model on a dataset that `mmpo build` wrote.

    The same command again resumes from the newest checkpoint. Example:
    mmpo train reward --data pairs --model tiny --out models/reward
    """
    for name in ("data", "out"):
        if not given.get(name):
            raise UserError(f"--{name} is needed: the folder {'of the dataset' if name == 'data' else 'to write'}")
    options = options_from(TrainOptions, {"kind": kind.value, **given}, flags=True)
    from mmpo.train.run import train_policy, train_reward

    summary = (train_policy if kind is Kind.policy else train_reward)(options)
    say(f"{summary['steps']} steps, training loss {shown(summary['train_loss'])}, γ = {shown(summary['gamma'])}")
    say(f"model: {summary['out']}")
    if as_json:
        print_json(summary)
