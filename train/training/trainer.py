"""What the policy and the reward trainer share: steps of whole prompts, one exact weighted mean a step, pairwise
measures.

It is a `transformers.Trainer`: schedules, checkpoints, callbacks and trackers are its own. One item of its data loader
is a whole step (`Step`), whose micro-batches `training_step` goes through by itself. transformers' accumulation would
divide by the number of micro-batches, whatever they hold; for prompts with 1 to 28 pairs that is far off.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import training_metrics
from mmpo.train.batches import Batch, MicroBatch, Step, make_step, plan_steps
from mmpo.train.data import PromptPairs, Renderer, check_prompt_scores, check_scores, pad_token, prepare_pairs, weighted_pairs
from mmpo.train.distributed import agreed, check_launch, rank_and_world, summed
from mmpo.train.messages import nothing_left, rendering_warnings, warn
from mmpo.train.model import ExecutionPlan, attach, bfloat16_on_cpu, choose_plan, completion_values, disable_dropout, recomputes
from mmpo.train.objective import LevelTarget, Logits, Objective, Totals, fit_target
from mmpo.train.options import pass_tokens
from mmpo.train.training.callbacks import MetricAccumulator, Resumption, Throughput
from mmpo.train.training.checkpoints import GuardedTrainer, memory_guard
from mmpo.train.training.learned import LearnedParameters
from mmpo.train.training.measures import predict_pairs
from mmpo.train.training.passes import StepPasses


class MarginTrainer(GuardedTrainer):
    """Base of `PolicyTrainer` and `RewardTrainer`, on one device or, started by a launcher, on several.

    train_dataset, eval_dataset: a PAIRS table (pyarrow, or a datasets.Dataset with its columns) or prepared prompts.
    processing_class: the tokenizer. loss, loss_options: as `Objective.parse` takes them. gamma: in 1/margin-unit.
    weight, source_weights: what a pair of a table counts for, as `prepare` takes them. thinking, graded_part: as
    `Renderer` takes them. loss_learning_rate: the peak rate of what the loss learns beside the model. The batch size of `args` is not
    used: a step holds `pairs_per_step` pairs or more, in passes of `tokens_per_batch` computed tokens (default:
    `pass_tokens`). layout: "auto", "tree" or "rows", as `choose_plan` takes it; `execution_plan` is what it chose.
    """

    kind = ""
    beta: Any = None  # a policy has one

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
        loss_learning_rate: float = 0.01,
        target: str = "plain",
        weight: str = "pair",
        source_weights: Mapping[str, float] | None = None,
        pairs_per_step: int = 64,
        tokens_per_batch: int | None = None,
        max_length: int = 1024,
        max_prompt_length: int = 512,
        thinking: Literal["keep", "drop"] = "keep",
        graded_part: Literal["answer", "all"] = "all",
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
        self.objective = Objective.parse(loss, loss_options, gamma, beta=self.beta)
        self.target: str | LevelTarget = target
        self.weight, self.source_weights = weight, dict(source_weights or {})
        self.pairs_per_step, self.tokens_per_batch = pairs_per_step, pass_tokens(tokens_per_batch, args.device)
        self.layout, self.dropout = layout, dropout or disable_dropout(model)
        self.rendering = (processing_class, max_length, max_prompt_length, thinking, graded_part)
        self.pad_token = pad_token(processing_class)
        self.prompts = self.as_prompts(train_dataset, training=True)
        if not self.prompts:
            raise UserError("train_dataset holds no prompts to train on")
        self.eval_prompts = self.as_prompts(eval_dataset) if eval_dataset is not None else None
        margin, weights = (np.concatenate([getattr(prompt, name) for prompt in self.prompts]) for name in ("margin", "weight"))
        self.objective = self.objective.fitted(margin, weights, args.device)
        self.learned = LearnedParameters(self.objective, loss_learning_rate) if self.objective.parameters else None
        everything = self.complete([*self.prompts, *(self.eval_prompts or [])], model, args)
        self.prompts, held_out = everything[: len(self.prompts)], everything[len(self.prompts) :]
        self.eval_prompts = None if self.eval_prompts is None else held_out
        self.metrics, self.throughput = MetricAccumulator(), Throughput()
        self.last_step: int | None = None  # a run that ends early ends here
        self.measured: tuple[int, dict[str, np.ndarray]] = (-1, {})  # the step of the last evaluation, and its pairs' values
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.prompts,  # type: ignore[arg-type]
            eval_dataset=self.eval_prompts,  # type: ignore[arg-type]
            processing_class=processing_class,
            callbacks=[Resumption(), self.throughput, *([self.learned] if self.learned else []), *(callbacks or [])],
        )
        self.args._n_gpu = min(1, self.args.n_gpu)  # never DataParallel: a step is not a tensor that it could split
        self.execution_plan, self._probed, self._planned = ExecutionPlan(), 0, (1.0, 1)  # epochs, their steps
        self.probe(everything)
        attach(model)

    def as_prompts(self, data: Any, training: bool = False) -> list[PromptPairs]:
        """Prepared prompts as they are; a PAIRS table rendered, without ties where every term needs a winner, and what rendering changed
        or left out said aloud. Raises UserError where none of the pairs to train on is left.
        """
        terms, where = [term.name for term in self.objective.terms], "train_dataset" if training else "eval_dataset"
        if isinstance(data, list):
            check_prompt_scores(data, terms, where)
            return data
        table = data if isinstance(data, pa.Table) else data.with_format("arrow")[:]
        table = weighted_pairs(table, self.source_weights, checked=training)
        if training:
            self.target = fit_target(str(self.target), table)
        check_scores(table, terms, where)
        ties, weights = not self.objective.needs_winner, (self.weight, self.source_weights)
        renderer = Renderer(*self.rendering)
        prepared = prepare_pairs(table, renderer, self.target, self.objective.gamma, ties, *weights)
        if training and not prepared.prompts:
            raise nothing_left(renderer, "train_dataset", prepared.counts)
        warn(rendering_warnings(renderer, prepared.counts))
        return prepared.prompts

    def complete(self, prompts: list[PromptPairs], model: nn.Module, args: TrainingArguments) -> list[PromptPairs]:
        """The prompts with what else training needs of them; called once, before the model is the trainer's."""
        return prompts

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

    def probe(self, prompts: Sequence[PromptPairs]) -> None:
        """Chooses how to run the model, and again where prompts come that are longer than all before."""
        longest = max(prompt.length for prompt in prompts)
        if longest > self._probed and not hasattr(self.model, "set_requires_gradient_sync"):  # split by FSDP it can't be probed
            how = {"training": True, "bf16": self.args.bf16, "checkpointing": recomputes(self.args)}
            self.execution_plan = agreed(lambda: choose_plan(self.model, self.kind, longest, self.layout, self.args.device, **how))
            self._probed = longest

    def get_train_dataloader(self) -> DataLoader:
        """The steps of the whole run in order, each made when it is asked for; the Trainer sees one epoch and skips into it on resuming."""

        def step(plans: list[np.ndarray]) -> Step:
            return self.make_step([self.prompts[i] for i in plans[0]])

        return DataLoader(self.plan(), batch_size=1, shuffle=False, collate_fn=step)  # type: ignore[arg-type]

    def pair_logits(self, values: Tensor, batch: MicroBatch) -> tuple[Logits, dict[str, Tensor]]:
        """What the objective reads of every pair, and named values per pair, from the completions' (completions,)."""
        raise TypeError("use PolicyTrainer or RewardTrainer")

    def backward(self, loss: Tensor) -> None:
        """Adds a share of a step's loss to the gradients, of which several processes take the mean where a sum is wanted."""
        self.accelerator.backward(loss * self.args.world_size)

    def values(self, model: nn.Module, part: Batch) -> Tensor:
        """One pass: the log-probability or the score of each completion, float32, (completions,)."""
        # of accelerate's own only the model's forward is within, and rewards are pooled below it
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            return completion_values(model, self.kind, part.to(self.args.device), self.execution_plan)

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
        with memory_guard(passes), bfloat16_on_cpu(model, self.args.bf16):
            for batch, loss, outputs in passes:
                total += loss
                seen.append((batch, self.metrics.note(batch, outputs, self.objective)))
            loss, tokens = summed(torch.stack([total, total.new_tensor(inputs.tokens)]))
        self.check_finite("the loss", float(loss))
        self.throughput.add(int(tokens), inputs.pairs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the pairwise metrics since the last log, each a weighted mean over pairs, and the true epoch. Callbacks also
        get the speed, which the log that checkpoints carry leaves out: it is another one in every run.
        """
        rates: dict[str, float] = {}
        if "loss" in logs:
            rates = self.throughput.rates()
            logs |= self.metrics.pop() | self.objective.figures | rates
        if self.state.epoch is not None and self.state.max_steps:
            self.state.epoch = self.state.global_step * self._planned[0] / self._planned[1]
        super().log(logs, start_time)
        for name in rates:
            self.state.log_history[-1].pop(name)

    predict_pairs = predict_pairs

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The measures of `mmpo.pipeline.metrics` over all pairs of the evaluation prompts, logged under the prefix."""
        prompts = self.as_prompts(eval_dataset) if eval_dataset is not None else self.eval_prompts
        if not prompts:
            raise UserError("there are no pairs to evaluate on")
        values = self.predict_pairs(prompts)
        self.measured = self.state.global_step, values
        terms = {term.name: values.pop(f"loss/{term.name}") for term in self.objective.terms}
        found = {**training_metrics(values), **self.objective.means(terms, values["weight"], values["margin"])}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
