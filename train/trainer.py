"""What the policy and the reward trainer share: steps of whole prompts, one exact weighted mean a step, pairwise
measures.

It is a `transformers.Trainer`: schedules, checkpoints, callbacks and trackers are its own. One item of its data loader
is a whole step (`Step`), whose micro-batches `training_step` goes through by itself. transformers' accumulation would
divide by the number of micro-batches, whatever they hold; for prompts with 1 to 28 pairs that is far off.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from mmpo.pipeline.errors import MmpoError, UserError, unknown_name
from mmpo.train.batches import BATCHES, Batch, Step, make_step, plan_steps
from mmpo.train.data import PromptPairs, prepare
from mmpo.train.losses import LOSSES
from mmpo.train.measures import training_metrics
from mmpo.train.render import Renderer
from mmpo.train.targets import targets

__all__ = ["MarginTrainer", "checked_loss", "disable_dropout", "gather_pairs"]


class _Steps(Dataset):
    """The steps of a whole run, made when asked for."""

    def __init__(self, trainer: "MarginTrainer", plan: Sequence[np.ndarray]) -> None:
        self.trainer, self.plan = trainer, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Step:
        return self.trainer.make_step([self.trainer.prompts[i] for i in self.plan[index]])


class MarginTrainer(Trainer):
    """Base of `PolicyTrainer` and `RewardTrainer`.

    train_dataset, eval_dataset: a PAIRS table (pyarrow, or a datasets.Dataset with its columns) or prepared prompts.
    processing_class: the tokenizer. loss: a key of LOSSES. gamma: in 1/margin-unit. The batch size of `args` is not
    used: a step holds `pairs_per_step` pairs or more, in micro-batches of `micro_batch_tokens` padded tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        processing_class: Any,
        gamma: float,
        loss: str = "mmpo",
        loss_options: Mapping[str, Any] | None = None,
        target: str = "plain",
        weight: str = "pair",
        pairs_per_step: int = 64,
        micro_batch_tokens: int = 16384,
        max_length: int = 1024,
        max_prompt_length: int = 512,
        dropout: bool = False,
        layout: str = "rows",
        callbacks: list[Any] | None = None,
    ) -> None:
        if args.gradient_accumulation_steps != 1:
            raise UserError("leave gradient_accumulation_steps at 1: micro_batch_tokens sets the micro-batches")
        if args.world_size > 1:
            raise UserError("this version trains on one device; start it without torchrun or accelerate launch")
        for name in ("eval_strategy", "save_strategy"):
            if str(getattr(args, name).value) == "epoch":
                raise UserError(f"{name}='epoch' is not supported: a run is one sequence of steps, use 'steps'")
        self.gamma, self.weight, self.target = gamma, weight, target
        self.loss_name, self.loss_options = loss, self.resolve_loss(loss, gamma, loss_options or {})
        self.pairs_per_step, self.micro_batch_tokens = pairs_per_step, micro_batch_tokens
        self.layout = BATCHES[layout]
        self.dropout = dropout
        self.renderer = Renderer(processing_class, max_length, max_prompt_length)
        self.pad_token = pad_token(processing_class)
        if not dropout:
            disable_dropout(model)
        self.prompts = self.as_prompts(train_dataset)
        if not self.prompts:
            raise UserError(f"no pair is left to train on; of the texts: {dict(self.renderer.counts)}")
        self.eval_prompts = self.as_prompts(eval_dataset) if eval_dataset is not None else None
        self._stats: dict[str, list[tuple[float, float]]] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.prompts,  # type: ignore[arg-type]
            eval_dataset=self.eval_prompts,  # type: ignore[arg-type]
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.args._n_gpu = min(1, self.args.n_gpu)  # never DataParallel: a step is not a tensor that it could split

    def resolve_loss(self, loss: str, gamma: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """The objective's options with its defaults."""
        return checked_loss(loss, gamma, options)

    # --- the data ---------------------------------------------------------------------------------------------------

    def as_prompts(self, data: Any) -> list[PromptPairs]:
        """Prepared prompts as they are; a PAIRS table rendered, with ties dropped where the loss needs a winner."""
        if isinstance(data, list):
            return data
        table = data if isinstance(data, pa.Table) else data.with_format("arrow")[:]
        if LOSSES[self.loss_name].needs_winner:
            table = table.filter(pc.greater(table["quality_margin"], 0.0))
        p, _ = targets(self.target, table, self.gamma)
        return prepare(table, p, self.renderer, self.weight).prompts

    def plan(self) -> list[np.ndarray]:
        """The prompts of every step of the run."""
        epochs = self.args.num_train_epochs
        sizes = [len(prompt.rows) for prompt in self.prompts]
        plan = plan_steps(sizes, self.pairs_per_step, epochs, self.args.seed)
        most = self.args.max_steps
        while most > len(plan):
            epochs *= 2
            plan = plan_steps(sizes, self.pairs_per_step, math.ceil(epochs), self.args.seed)
        return plan[:most] if most > 0 else plan

    def make_step(self, prompts: Sequence[PromptPairs]) -> Step:
        """One step's micro-batches."""
        return make_step(prompts, self.micro_batch_tokens, self.pad_token, self.layout)

    def get_train_dataloader(self) -> DataLoader:
        """The steps of the whole run in order; the Trainer sees one epoch and skips into it on resuming."""
        return DataLoader(_Steps(self, self.plan()), batch_size=1, shuffle=False, collate_fn=_first)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> Any:
        """One pass over the loader is the run."""
        steps = len(dataloader)
        return 1, steps, len(self.prompts), len(self.prompts), 1, steps, steps

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        return None  # a step knows its own weight

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations a parameter and padded token (Kaplan et al. 2020)."""
        return 6 * sum(value.numel() for value in self.model.parameters()) * inputs.tokens

    # --- the loss ---------------------------------------------------------------------------------------------------

    def pair_logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """z of every pair, shape (pairs,), and named values per pair of the chosen and rejected completion."""
        raise TypeError("use PolicyTrainer or RewardTrainer")

    def auxiliary_loss(self, values: dict[str, Tensor]) -> Tensor | float:
        """A term per pair added to the objective; none here."""
        return 0.0

    def precision(self) -> Any:
        """bfloat16 autocast if asked for; accelerate wraps only the model's own forward, and rewards are pooled below it."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)

    def per_pair_loss(self, z: Tensor, batch: Batch) -> Tensor:
        """The objective's value of every pair, shape (pairs,)."""
        loss = LOSSES[self.loss_name]
        return loss.per_pair(z, batch.p, batch.margin, gamma=self.gamma, **self.loss_options)

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: float | None = None
    ) -> Any:
        """Σ w·loss of a micro-batch over `num_items_in_batch`, the weight of the whole step (default: of the batch)."""
        z, values = self.pair_logits(model, inputs)
        losses = self.per_pair_loss(z, inputs) + self.auxiliary_loss(values)
        total = float(inputs.weight.sum()) if num_items_in_batch is None else num_items_in_batch
        loss = (inputs.weight * losses).sum() / total
        return (loss, {"z": z, "losses": losses, **values}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Step, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """Forward and backward over all micro-batches of a step; returns the step's loss."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for batch in inputs.batches:
            batch = batch.to(self.args.device)
            with self.precision():
                loss, outputs = self.compute_loss(model, batch, True, inputs.total_weight)
            self.accelerator.backward(loss)
            total += loss.detach()
            self._remember(batch, outputs)
        if not torch.isfinite(total):
            raise MmpoError(
                f"the loss is {float(total)} at step {self.state.global_step + 1}: lower the learning rate, or check "
                "the margins with `mmpo validate`"
            )
        return total

    def _remember(self, batch: Batch, outputs: dict[str, Tensor]) -> None:
        z = outputs.pop("z").detach()
        outputs.pop("losses")
        ones = batch.weight
        decided = ones * (batch.margin > 0)
        self._add("rewards/accuracy", (z > 0).float(), decided)
        self._add("rewards/margins", z, ones)
        for name, value in outputs.items():
            self._add(name, value.detach(), ones)

    def _add(self, name: str, value: Tensor, weight: Tensor) -> None:
        self._stats.setdefault(name, []).append((float((value * weight).sum()), float(weight.sum())))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the pairwise figures since the last log, each a weighted mean over pairs, and the true epoch."""
        if "loss" in logs:
            for name, parts in self._stats.items():
                weight = sum(part[1] for part in parts)
                if weight:
                    logs[name] = sum(part[0] for part in parts) / weight
            self._stats = {}
        if self.state.epoch is not None and self.state.max_steps:
            self.state.epoch = self.state.global_step / self.state.max_steps * self.args.num_train_epochs
        super().log(logs, start_time)

    # --- measures ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_pairs(self, prompts: Sequence[PromptPairs]) -> dict[str, np.ndarray]:
        """Per-pair values in the order of `rows`: z, p, margin, rows and what `pair_logits` names, each (pairs,)."""
        was_training = self.model.training
        self.model.eval()
        parts: list[dict[str, Tensor]] = []
        for batch in self.make_step(prompts).batches:
            batch = batch.to(self.args.device)
            with self.precision():
                _, outputs = self.compute_loss(self.model_wrapped, batch, True)
            parts.append({**outputs, "p": batch.p, "margin": batch.margin, "rows": batch.pairs})
        self.model.train(was_training)
        return gather_pairs(parts)

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The measures of `mmpo.train.measures` over all pairs of the evaluation prompts, logged under the prefix."""
        prompts = self.as_prompts(eval_dataset) if eval_dataset is not None else self.eval_prompts
        if not prompts:
            raise UserError("there are no pairs to evaluate on")
        values = self.predict_pairs(prompts)
        found = {"loss": float(values["losses"].mean()), **training_metrics(values)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def checked_loss(loss: str, gamma: float, options: Mapping[str, Any]) -> dict[str, Any]:
    """The objective's options with its defaults, tried on one pair, so that what cannot work is refused before any work.

    Raises UserError.
    """
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    resolved = LOSSES[loss].resolve(options)
    LOSSES[loss].per_pair(torch.zeros(1), torch.ones(1), torch.ones(1), gamma=gamma, **resolved)
    return resolved


def gather_pairs(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Micro-batches' per-pair values joined and put in the order of the table's rows, float64 (rows: int64)."""
    joined = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    order = np.argsort(joined["rows"], kind="stable")
    return {name: (v if name == "rows" else v.astype(np.float64))[order] for name, v in joined.items()}


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout rate of the modules (not of the saved config) to 0.

    Attention dropout is a plain float attribute in transformers, so modules' attributes are searched by name.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def pad_token(tokenizer: Any) -> int:
    """A token id to fill rows with; the attention mask hides it, so that any will do."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0


def _first(items: list[Step]) -> Step:
    return items[0]
