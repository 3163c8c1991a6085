"""The policy trainer: z = β·[(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpo.pipeline.errors import MmpoError, UserError
from mmpo.train.batches import Batch, Step
from mmpo.train.data import PromptPairs
from mmpo.train.losses import LOSSES
from mmpo.train.reference import cached_logprobs, completion_logprobs, with_reference
from mmpo.train.trainer import MarginTrainer

__all__ = ["PolicyTrainer"]


class PolicyTrainer(MarginTrainer):
    """Trains a causal language model on quality margins; the other arguments are `MarginTrainer`'s.

    beta: weight of the log-ratio. sft: weight of the mean negative log-probability per token of the chosen completion.
    ref_model: the reference; by default the model itself as it is when the trainer is made. Its log-probabilities are
    computed once per completion, before the first step, and kept in the Parquet file `reference_cache` if one is
    named. own_reference: whether reference values that the prompts bring are this very model's, so that the first step
    checks it.
    """

    def __init__(
        self,
        *args: Any,
        beta: float = 0.1,
        sft: float = 0.0,
        ref_model: nn.Module | None = None,
        reference_cache: Path | None = None,
        own_reference: bool | None = None,
        **options: Any,
    ) -> None:
        self.beta, self.sft, self.ref_model = beta, sft, ref_model
        super().__init__(*args, **options)
        parts = [self.prompts, self.eval_prompts or []]
        known = all(prompt.reference is not None for part in parts for prompt in part)
        self.own_reference = (ref_model is None and not known) if own_reference is None else own_reference
        if not known:
            everything = self._referenced([*parts[0], *parts[1]], reference_cache)
            self.prompts, rest = everything[: len(parts[0])], everything[len(parts[0]) :]
            self.eval_prompts = rest if self.eval_prompts is not None else None
        self.ref_model = None  # not needed again; free its memory

    def resolve_loss(self, loss: str, gamma: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """As the base; an objective with a β of its own (ipo) gets the trainer's, because z carries that one."""
        if loss in LOSSES and "beta" in LOSSES[loss].options:
            if options.get("beta", self.beta) != self.beta:
                raise UserError(f"{loss} works with the policy's beta ({self.beta}): set beta, not loss_options.beta")
            options = {**options, "beta": self.beta}
        return super().resolve_loss(loss, gamma, options)

    def _referenced(self, prompts: list[PromptPairs], cache: Path | None) -> list[PromptPairs]:
        model = self.ref_model if self.ref_model is not None else self.model
        options: dict[str, Any] = {
            "tokens": self.micro_batch_tokens,
            "pad_token": self.pad_token,
            "device": self.args.device,
            "bf16": self.args.bf16,
            "layout": self.layout,
        }
        if cache is not None:
            return cached_logprobs(model, prompts, cache, **options)
        return with_reference(prompts, completion_logprobs(model, prompts, **options))

    def pair_logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """z (pairs,), and the log-probabilities and log-ratios of both completions, each (pairs,)."""
        logps = self.layout.logprobs(model, batch)
        ratios = logps - batch.reference
        tokens = (batch.lengths - batch.starts).to(logps.dtype)
        used = ratios / tokens if LOSSES[self.loss_name].average_logprobs else ratios
        return self.beta * (used[batch.chosen] - used[batch.rejected]), {
            "logps/chosen": logps[batch.chosen],
            "logps/rejected": logps[batch.rejected],
            "rewards/chosen": self.beta * ratios[batch.chosen],
            "rewards/rejected": self.beta * ratios[batch.rejected],
            "nll/chosen": -(logps / tokens)[batch.chosen],
        }

    def auxiliary_loss(self, values: dict[str, Tensor]) -> Tensor | float:
        """sft · (−mean log-probability per token of the chosen completion), (pairs,)."""
        return self.sft * values["nll/chosen"] if self.sft else 0.0

    def training_step(self, model: nn.Module, inputs: Step, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """A step; before the very first, the policy must still equal its own reference."""
        if self.state.global_step == 0 and self.own_reference and not self.dropout:
            self.check_first_step(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    @torch.no_grad()
    def check_first_step(self, step: Step) -> None:
        """Raises MmpoError unless log-probabilities in training mode equal the reference's, so that every z is 0.

        Tolerance a completion: .001 nats and 1e-5 of the value; .02 and .5% in bfloat16. Dropout would fail it, and so
        would reference values of other weights.
        """
        batch = step.batches[0].to(self.args.device)
        self.model.train()
        with self.precision():
            logps = self.layout.logprobs(self.model_wrapped, batch)
        off = (logps - batch.reference).abs()
        absolute, relative = (0.02, 5e-3) if self.args.bf16 else (1e-3, 1e-5)
        if not bool((off <= absolute + relative * batch.reference.abs()).all()):
            raise MmpoError(
                "first-step check failed: policy and reference are the same model, yet a completion's log-probability "
                f"differs by {float(off.max()):.4g} nats. The reference values belong to other weights, or the model "
                "is not deterministic in training mode"
            )
