"""What a model gives every completion of many prompts, without gradients: for the reference and for measuring."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from mmpo.train.batches import group_prompts
from mmpo.train.data import PromptPairs
from mmpo.train.model import ExecutionPlan, choose_plan, completion_values

Item = TypeVar("Item")


@torch.no_grad()
def predict_values(
    model: nn.Module,
    kind: str,
    prompts: Sequence[PromptPairs],
    *,
    tokens: int,
    pad_token: int,
    device: torch.device | str,
    bf16: bool = False,
    plan: ExecutionPlan | None = None,
) -> list[np.ndarray]:
    """The value of every completion, each computed once: one array (completions,), float64, per prompt.

    kind: "policy" (summed log-probability, in nats) or "reward" (score). tokens: computed in one pass at most. plan: how the
    model is run (default: what `choose_plan` finds for the longest row).
    """
    was_training = model.training
    model.eval().to(device)
    if plan is None:
        plan = choose_plan(model, kind, max((prompt.length for prompt in prompts), default=1))
    found: dict[int, list[np.ndarray]] = {id(prompt): [] for prompt in prompts}
    for passes in group_prompts(prompts, tokens, plan.batches):
        for parts in passes:
            batch = plan.batches.build([completions for _, completions in parts], pad_token).to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                values = completion_values(model, kind, batch, plan).cpu().double().numpy()
            bounds = np.cumsum([len(completions) for _, completions in parts])[:-1]
            for (prompt, _), part in zip(parts, np.split(values, bounds), strict=True):
                found[id(prompt)].append(part)
    model.train(was_training)
    return [np.concatenate(found[id(prompt)]) for prompt in prompts]


def token_runs(items: Iterable[Item], size: Callable[[Item], int], least: int) -> Iterator[list[Item]]:
    """The items in their order, in runs that end where they have `least` tokens or more. size: an item's tokens.

    >>> list(token_runs([3, 1, 2, 5, 1], size=int, least=4))
    [[3, 1], [2, 5], [1]]
    """
    run: list[Item] = []
    held = 0
    for item in items:
        run.append(item)
        held += size(item)
        if held >= least:
            yield run
            run, held = [], 0
    if run:
        yield run
