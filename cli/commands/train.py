"""`mmpo train policy|reward`: one flag for every field of TrainOptions; and `mmpo merge`, which makes an adapter a whole model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, say, shown
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import options_from
from mmpo.train import TrainOptions
from mmpo.train.messages import is_first_process
from mmpo.train.objective import reads_gamma


class Kind(StrEnum):
    """What is trained."""

    policy = "policy"
    reward = "reward"


@with_flags(TrainOptions, without=("kind",))
def train(
    kind: Annotated[Kind, typer.Argument(help="policy (a causal language model) or reward (a scorer).")],
    *,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Train a policy or a reward model on a dataset that `mmpo build` wrote.

    The same command again resumes from the newest checkpoint. On several devices: accelerate launch -m mmpo.cli train ...
    Example: mmpo train reward --data pairs --model tiny --out models/reward
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DDP warns where every weight is used in every pass, which is as it should be. Read when torch is loaded.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with _one_voice():
        for name in ("data", "out"):
            if not given.get(name):
                raise UserError(f"--{name} is needed: the folder {'of the dataset' if name == 'data' else 'to write'}")
        options = options_from(TrainOptions, {"kind": kind.value, **given}, flags=True)
        from mmpo.train import train_policy, train_reward
        from mmpo.train.distributed import leave_together

        summary = (train_policy if kind is Kind.policy else train_reward)(options)
        if is_first_process():
            gamma = f", γ = {shown(summary['gamma'])}" if reads_gamma(options.loss, options.target) else ""
            say(f"{summary['steps']} steps, training loss {shown(summary['train_loss'])}{gamma}")
            say(f"model: {summary['out']}")
            print_json(summary, as_json)
        leave_together()


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a LoRA policy, or of any adapter of peft.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write, whole or not at all; an earlier merge there is replaced.")],
    dtype: Annotated[
        str, typer.Option(help="What weights are saved as: float32, bfloat16 or float16; 16 bits round a small adapter's change.")
    ] = "float32",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code; only for models you trust.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add an adapter to the weights of its base: one whole model, which anything loads without peft.

    Example: mmpo merge models/policy --out models/whole
    """
    from mmpo.train import merge as merged

    summary = merged(adapter, out, dtype=dtype, trust_remote_code=trust_remote_code)
    say(f"{adapter} and its base {summary['base']}: {summary['parameters']:,} weights, {summary['dtype']}")
    say(f"model: {out}")
    print_json(summary, as_json)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes the first one speaks; the others are silent, but for an error that they alone have met."""
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if is_first_process():
            raise
        from mmpo.train.distributed import reported_elsewhere

        if isinstance(error, UserError) and not reported_elsewhere(error):
            raise
        raise typer.Exit(2 if isinstance(error, UserError) else 130) from None
