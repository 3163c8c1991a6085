"""What a run's frozen layers give, computed once for every completion and known to its steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmpo.pipeline.progress import say
from mmpo.train.distributed import rank_and_world
from mmpo.train.inference import cached_values
from mmpo.train.messages import warn
from mmpo.train.model import StateFile, kept_states, layers_of, states_below
from mmpo.train.options import TrainOptions
from mmpo.train.training.trainer import MarginTrainer


@contextmanager
def known_below(trainer: MarginTrainer, options: TrainOptions) -> Iterator[None]:
    """Within, what frozen layers give is computed once for every completion, where that is exact."""
    if options.top_layers is None:
        yield
        return
    layers, part = layers_of(trainer.model), trainer.make_step([min(trainer.prompts, key=lambda prompt: prompt.tokens)]).idle
    cut = len(layers) - options.top_layers
    if rank_and_world()[1] > 1:
        warn([f"the {cut} frozen layers are computed anew at every step: several processes keep no states of each other's"])
        yield
        return
    with StateFile(options.out) as file, kept_states(trainer.model, cut, file), torch.no_grad():
        first, again = (trainer.values(trainer.model, part) for _ in range(2))
    if not torch.allclose(first, again, rtol=1e-4, atol=1e-3 if options.kind == "policy" else 1e-4):
        off = float((first - again).abs().max())
        warn([f"the {cut} frozen layers are computed anew at every step: from their states alone values differ by {off:.2g}"])
        yield
        return
    with states_below(trainer.model, cut, options.out, options.bf16) as file:
        if not options.top_layers and not len(file):  # all that there is to do is theirs, so that how long it takes can be said
            shared = {"tokens": trainer.tokens_per_batch, "pad_token": trainer.pad_token, "device": trainer.args.device}
            prompts = [*trainer.prompts, *(trainer.eval_prompts or [])]
            cached_values(
                trainer.model,
                "reward",
                prompts,
                False,
                bf16=options.bf16,
                plan=trainer.execution_plan,
                called="frozen layers",
                **shared,
            )
        yield
        of = "tokens'" if options.top_layers else "completions'"
        say(
            f"the {cut} frozen layers were computed once: {len(file)} {of} states, {file.bytes / 1e6:.0f} MB for the time of the run"
        )
