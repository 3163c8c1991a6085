"""What the policy and the reward trainer share: steps of whole prompts, one exact weighted mean a step, pairwise
measures.

It is a `transformers.Trainer`: schedules, checkpoints, callbacks and trackers are its own. One item of its data loader
is a whole step (`Step`), whose micro-batches `training_step` goes through by itself. transformers' accumulation would
divide by the number of micro-batches, whatever they hold; for prompts with 1 to 28 pairs that is far off.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import training_metrics
from mmpo.train.batches import Batch, MicroBatch, Step, make_step, pass_tokens, plan_steps, token_runs
from mmpo.train.data import PromptPairs, Renderer, check_sources, pad_token, prepare, usable_pairs
from mmpo.train.distributed import check_launch, from_all, rank_and_world, summed
from mmpo.train.messages import some_ids
from mmpo.train.model import ExecutionPlan, attach, choose_plan, completion_values, disable_dropout, recomputes
from mmpo.train.objective import Logits, Objective, Totals, targets
from mmpo.train.training.callbacks import MetricAccumulator, Resumption, Throughput
from mmpo.train.training.checkpoints import GuardedTrainer, memory_guard
from mmpo.train.training.passes import StepPasses


class _Steps(Dataset):
    """The steps of a whole run, made when asked for."""

    def __init__(self, trainer: "MarginTrainer", plan: Sequence[np.ndarray]) -> None:
        self.trainer, self.plan = trainer, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Step:
        return self.trainer.make_step([self.trainer.prompts[i] for i in self.plan[index]])


class MarginTrainer(GuardedTrainer):
    """Base of `PolicyTrainer` and `RewardTrainer`, on one device or, started by a launcher, on several.

    train_dataset, eval_dataset: a PAIRS table (pyarrow, or a datasets.Dataset with its columns) or prepared prompts.
    processing_class: the tokenizer. loss, loss_options: as `Objective.parse` takes them. gamma: in 1/margin-unit.
    weight, source_weights: what a pair of a table counts for, as `prepare` takes them. The batch size of `args` is not
    used: a step holds `pairs_per_step` pairs or more, in passes of `tokens_per_batch` computed tokens (default:
    `pass_tokens`). layout: "auto", "tree" or "rows", as `choose_plan` takes it; `execution_plan` is what it chose.
    """

    kind = ""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        processing_class: Any,
        gamma: float,
        loss: str | Mapping[str, Any] = "mmpo",
        loss_options: Mapping[str, Any] | None = None,
        target: str = "plain",
        weight: str = "pair",
        source_weights: Mapping[str, float] | None = None,
        pairs_per_step: int = 64,
        tokens_per_batch: int | None = None,
        max_length: int = 1024,
        max_prompt_length: int = 512,
        dropout: bool = False,
        layout: str = "auto",
        callbacks: list[Any] | None = None,
    ) -> None:
        if args.gradient_accumulation_steps != 1:
            raise UserError("leave gradient_accumulation_steps at 1: tokens_per_batch sets the micro-batches")
        check_launch(args.bf16)
        for name in ("eval_strategy", "save_strategy"):
            if str(getattr(args, name).value) == "epoch":
                raise UserError(f"{name}='epoch' is not supported: a run is one sequence of steps, use 'steps'")
        self.objective = self.parse_objective(loss, loss_options or {}, gamma)
        self.target, self.weight, self.source_weights = target, weight, dict(source_weights or {})
        self.pairs_per_step, self.tokens_per_batch = pairs_per_step, pass_tokens(tokens_per_batch, args.device)
        self.layout, self.dropout = layout, dropout
        self.renderer = Renderer(processing_class, max_length, max_prompt_length)
        self.pad_token = pad_token(processing_class)
        if not dropout:
            disable_dropout(model)
        self.prompts = self.as_prompts(train_dataset, training=True)
        if not self.prompts:
            raise UserError(f"no pair is left to train on; of the texts: {dict(self.renderer.counts)}")
        self.eval_prompts = self.as_prompts(eval_dataset) if eval_dataset is not None else None
        self.metrics, self.throughput = MetricAccumulator(), Throughput()
        self.last_step: int | None = None  # a run that ends early ends here
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.prompts,  # type: ignore[arg-type]
            eval_dataset=self.eval_prompts,  # type: ignore[arg-type]
            processing_class=processing_class,
            callbacks=[Resumption(), self.throughput, *(callbacks or [])],
        )
        self.args._n_gpu = min(1, self.args.n_gpu)  # never DataParallel: a step is not a tensor that it could split
        self.execution_plan, self._probed, self._planned = ExecutionPlan(), 0, (1.0, 1)  # epochs, their steps
        self._probe([*self.prompts, *(self.eval_prompts or [])])
        attach(model)

    def parse_objective(self, loss: str | Mapping[str, Any], options: Mapping[str, Any], gamma: float) -> Objective:
        """The objective, checked."""
        return Objective.parse(loss, options, gamma)

    # --- the data ---------------------------------------------------------------------------------------------------

    def as_prompts(self, data: Any, training: bool = False) -> list[PromptPairs]:
        """Prepared prompts as they are; a PAIRS table rendered, without ties where every term needs a winner."""
        if isinstance(data, list):
            return data
        table = data if isinstance(data, pa.Table) else data.with_format("arrow")[:]
        if training:
            check_sources(table, self.source_weights)
        table, _ = usable_pairs(table, ties=not self.objective.needs_winner, source_weights=self.source_weights)
        p, _ = targets(self.target, table, self.objective.gamma)
        return prepare(table, p, self.renderer, self.weight, self.source_weights).prompts

    def plan(self) -> list[np.ndarray]:
        """The prompts of every step of the run."""
        epochs = self.args.num_train_epochs
        sizes = [len(prompt.rows) for prompt in self.prompts]
        plan = plan_steps(sizes, self.pairs_per_step, epochs, self.args.seed)
        most = self.args.max_steps
        while most > len(plan):
            epochs = math.ceil(2 * epochs)
            plan = plan_steps(sizes, self.pairs_per_step, epochs, self.args.seed)
        self._planned = epochs, len(plan)
        return plan[: self.last_step] if most <= 0 else plan[:most][: self.last_step]

    def make_step(self, prompts: Sequence[PromptPairs]) -> Step:
        """This process's part of one step."""
        rank, world = rank_and_world()
        return make_step(prompts, self.tokens_per_batch, self.pad_token, self.execution_plan.batches, rank=rank, world=world)

    def _probe(self, prompts: Sequence[PromptPairs]) -> None:
        """Chooses how to run the model, and again where prompts come that are longer than all before."""
        longest = max(prompt.length for prompt in prompts)
        if longest > self._probed and not hasattr(self.model, "set_requires_gradient_sync"):  # split by FSDP it can't be probed
            how = {"training": True, "bf16": self.args.bf16, "checkpointing": recomputes(self.args)}
            self.execution_plan = choose_plan(self.model, self.kind, longest, self.layout, self.args.device, **how)
            self._probed = longest

    def get_train_dataloader(self) -> DataLoader:
        """The steps of the whole run in order; the Trainer sees one epoch and skips into it on resuming."""
        return DataLoader(_Steps(self, self.plan()), batch_size=1, shuffle=False, collate_fn=_first)

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations a parameter and padded token (Kaplan et al. 2020)."""
        return 6 * sum(value.numel() for value in self.model.parameters()) * inputs.tokens

    # --- the loss ---------------------------------------------------------------------------------------------------

    def pair_logits(self, values: Tensor, batch: MicroBatch) -> tuple[Logits, dict[str, Tensor]]:
        """What the objective reads of every pair, and named values per pair, from the completions' (completions,)."""
        raise TypeError("use PolicyTrainer or RewardTrainer")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.args.device

    def backward(self, loss: Tensor) -> None:
        """Adds a share of a step's loss to the gradients, of which several processes take the mean where a sum is wanted."""
        self.accelerator.backward(loss * self.args.world_size)

    def values(self, model: nn.Module, part: Batch) -> Tensor:
        """One pass: the log-probability or the score of each completion, float32, (completions,)."""
        with self.precision():
            return completion_values(model, self.kind, part.to(self.args.device), self.execution_plan)

    def precision(self) -> Any:
        """bfloat16 autocast if asked for; accelerate wraps only the model's own forward, and rewards are pooled below it."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)

    def loss_of(self, values: Tensor, batch: MicroBatch, totals: Totals | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of a step's loss from the completions' values; `totals` of the step (default: the
        batch's own). The outputs: z, each term's value as "loss/<term>", and what `pair_logits` names, all (pairs,).
        """
        logits, named = self.pair_logits(values, batch)
        terms = self.objective.per_pair(logits, batch.p, batch.margin)
        loss = self.objective.total(terms, batch.weight, batch.margin, totals)
        return loss, {"z": logits.z, **{f"loss/{name}": terms[name] for name in terms}, **named}

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: MicroBatch, return_outputs: bool = False, num_items_in_batch: Totals | None = None
    ) -> Any:
        """`loss_of` a micro-batch in one graph, whatever its parts; `num_items_in_batch`: the step's totals."""
        inputs = inputs.to(self.args.device)
        values = torch.cat([self.values(model, part) for part in inputs.parts])
        loss, outputs = self.loss_of(values, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Step, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """Forward and backward over all micro-batches of a step; returns the step's loss, of all processes."""
        model.train()
        inputs = replace(inputs, batches=[batch.to(self.args.device) for batch in inputs.batches])
        total = torch.zeros((), device=self.args.device)
        self.seen = seen = []
        passes = StepPasses(self, model, inputs)
        lora = hasattr(self.model, "peft_config")
        with memory_guard(passes, self.state.global_step + 1, self.tokens_per_batch, self.args, lora):
            for batch, loss, outputs in passes:
                total += loss
                seen.append((batch, self._note(batch, outputs)))
            loss, tokens = summed(torch.stack([total, total.new_tensor(inputs.tokens)]))
        self.check_finite("the loss", float(loss))
        self.throughput.add(int(tokens), inputs.pairs)
        return loss

    def _note(self, batch: MicroBatch, outputs: dict[str, Tensor]) -> Tensor:
        """Adds a micro-batch to the metrics; which of its pairs have finite values, (pairs,)."""
        z = outputs.pop("z").detach()
        finite = torch.isfinite(z)
        self.metrics.add("rewards/accuracy", (z > 0).float(), batch.weight * (batch.margin > 0))
        self.metrics.add("rewards/margins", z, batch.weight)
        for term in self.objective.terms:
            value = outputs.pop(f"loss/{term.name}").detach()
            finite &= torch.isfinite(value)
            if len(self.objective.terms) > 1:
                self.metrics.add(f"loss/{term.name}", value, term.pair_weight(batch.weight, batch.margin))
        for name, value in outputs.items():
            self.metrics.add(name, value.detach(), batch.weight)
        return finite

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the pairwise metrics since the last log, each a weighted mean over pairs, and the true epoch. Callbacks also
        get the speed, which the log that checkpoints carry leaves out: it is another one in every run.
        """
        rates: dict[str, float] = {}
        if "loss" in logs:
            rates = self.throughput.rates()
            logs |= self.metrics.pop() | rates
        if self.state.epoch is not None and self.state.max_steps:
            self.state.epoch = self.state.global_step * self._planned[0] / self._planned[1]
        super().log(logs, start_time)
        for name in rates:
            self.state.log_history[-1].pop(name)

    # --- measures ---------------------------------------------------------------------------------------------------

    def predict_pairs(self, prompts: Sequence[PromptPairs], batches_at_once: int = 8) -> dict[str, np.ndarray]:
        """Per-pair values in the order of `rows`: z, p, margin, weight, rows and `loss_of`'s outputs, each (pairs,), float64 (rows:
        int64).

        Every process calls this with the same prompts and gets all values. batches_at_once: how many micro-batches a process lays
        out at a time, as those of a large set would fill the memory. Raises UserError, with prompt ids, where a value is not
        finite.
        """
        was_training = self.model.training
        self.model.eval()
        self._probe(prompts)
        try:
            own = list(self._predicted(prompts, batches_at_once))
        finally:
            self.model.train(was_training)
        parts = [part for process in from_all(lambda: own) for part in process]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(joined["rows"], kind="stable")
        values = {name: value[order] for name, value in joined.items()}
        bad = set(values["rows"][~np.isfinite(values["z"])].tolist())
        if bad:
            ids = [prompt.prompt_id for prompt in prompts if not bad.isdisjoint(prompt.rows.tolist())]
            raise UserError(
                f"measuring at step {self.state.global_step}: {len(bad)} of {len(values['z'])} pairs have no finite value, of the prompts "
                f"{some_ids(ids)}. Lower the learning rate, or try without bf16; the last good checkpoint stays"
            )
        return values

    @torch.no_grad()
    def _predicted(self, prompts: Sequence[PromptPairs], batches_at_once: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's share of the values, by micro-batch."""
        longest_first = sorted(prompts, key=lambda prompt: (-prompt.length, prompt.prompt_id))  # those of like length together
        tokens = batches_at_once * rank_and_world()[1] * self.tokens_per_batch
        for chunk in token_runs(longest_first, lambda prompt: prompt.tokens, tokens):
            step = self.make_step(chunk)
            for batch in step.batches:
                _, outputs = self.compute_loss(self.model_wrapped, batch, True)
                outputs |= {"p": batch.p, "margin": batch.margin, "weight": batch.weight}
                found = {name: value.cpu().numpy().astype(np.float64) for name, value in outputs.items()}
                yield {**found, "rows": batch.pairs.cpu().numpy()}
            for _ in range(step.idle_passes):
                self.values(self.model_wrapped, step.idle)

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The measures of `mmpo.pipeline.metrics` over all pairs of the evaluation prompts, logged under the prefix."""
        prompts = self.as_prompts(eval_dataset) if eval_dataset is not None else self.eval_prompts
        if not prompts:
            raise UserError("there are no pairs to evaluate on")
        values = self.predict_pairs(prompts)
        terms = {term.name: values.pop(f"loss/{term.name}") for term in self.objective.terms}
        found = {**training_metrics(values), **self.objective.means(terms, values["weight"], values["margin"])}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _first(items: list[Step]) -> Step:
    return items[0]
