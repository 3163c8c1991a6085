"""What a policy writes while it is trained: replies to the same few held-out prompts, before the first step and at every evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmpo.pipeline.errors import UserError, printable
from mmpo.pipeline.progress import say
from mmpo.pipeline.storage import atomic_file
from mmpo.pipeline.tables import TOOLS
from mmpo.train.data import Renderer, messages_at, text_batches
from mmpo.train.distributed import rank_and_world
from mmpo.train.inference import Draft, Slots
from mmpo.train.messages import warn
from mmpo.train.model import plain_model
from mmpo.train.options import TrainOptions
from mmpo.train.training.trainer import MarginTrainer

SAMPLES = "samples.jsonl"
"""A line for every reply: step, prompt_id, prompt, reply, tokens, and finish, which says whether it ended by itself ("stop")."""
_SHOWN = 60
"""Characters of a prompt in a line of progress; of a reply three times as many."""


class Samples(TrainerCallback):
    """Has a trainer's policy reply to some prompts and keeps what it writes in the run's folder. prompts: their ids, messages and token
    ids. Each reply is drawn at temperature 1 with random numbers of its own, the same ones every time: what differs is the policy.
    """

    def __init__(self, trainer: MarginTrainer, options: TrainOptions, prompts: Sequence[tuple[str, Any, np.ndarray]]) -> None:
        self.trainer, self.options, self.prompts = trainer, options, prompts
        self.file = Path(options.out) / SAMPLES

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What it writes before it has learnt anything."""
        if not state.global_step:
            self.on_evaluate(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Behind the measures of a step."""
        if rank_and_world()[0] or not self.prompts:
            return
        model = plain_model(self.trainer.model)
        was_training = self.trainer.model.training
        self.trainer.model.eval()
        try:
            devices = [] if args.device.type == "cpu" else [args.device]
            with torch.random.fork_rng(devices, device_type=args.device.type if devices else "cuda"):
                drafts = self._written(model)
        except UserError as error:
            warn([f"no samples are written: {error}"])
            self.prompts = ()
            return
        finally:
            self.trainer.model.train(was_training)
        self._keep(state.global_step, drafts)

    def _written(self, model: Any) -> list[Draft]:
        tokenizer = self.trainer.processing_class
        ends = getattr(model.generation_config, "eos_token_id", None)
        known = frozenset(one for one in [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id] if one is not None)
        slots = Slots(model, tokenizer, len(self.prompts))
        drafts = [
            Draft(tuple(ids.tolist()), self.options.sample_tokens, seed=self.options.seed + place, ends=known)
            for place, (_, _, ids) in enumerate(self.prompts)
        ]
        ended = slots.add(drafts)
        while len(ended) < len(drafts):
            ended += slots.step()
        return drafts

    def _keep(self, step: int, drafts: Sequence[Draft]) -> None:
        """Adds the replies; those of later steps are of a run that went on from an earlier checkpoint and are replaced."""
        before = [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()] if self.file.is_file() else []
        rows = [row for row in before if row["step"] < step]
        tokenizer: Any = self.trainer.processing_class
        for (identity, messages, _), draft in zip(self.prompts, drafts, strict=True):
            reply = str(tokenizer.decode(draft.token_ids, skip_special_tokens=True))
            rows.append(
                {
                    "step": step,
                    "prompt_id": identity,
                    "prompt": messages,
                    "reply": reply,
                    "tokens": len(draft.token_ids),
                    "finish": draft.finish,
                }
            )
            asked = printable(messages[-1].get("content") or "", _SHOWN)
            say(f"sample at step {step}: {asked!r} \N{RIGHTWARDS ARROW} {printable(reply, 3 * _SHOWN)!r}")
        with atomic_file(self.file) as file:
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def samples_of(trainer: MarginTrainer, options: TrainOptions) -> Samples:
    """The samples of a run: as many prompts of its evaluation split as are asked for, chosen by the seed. Raises UserError."""
    ids = sorted(prompt.prompt_id for prompt in trainer.eval_prompts or ())
    order = np.random.default_rng([options.seed, 1]).permutation(len(ids))
    wanted = [ids[place] for place in order[: options.sample]]
    renderer = Renderer(*trainer.rendering)
    found: dict[str, tuple[str, Any, np.ndarray]] = {}
    for batch in text_batches(options.data, str(options.eval_split)):
        for place, identity in enumerate(batch["prompt_id"].to_pylist()):
            if identity in wanted and identity not in found:
                [messages] = messages_at(batch["prompt"], np.array([place]))
                tools = batch[TOOLS][place].as_py() if TOOLS in batch.column_names else None
                tokens = renderer.prompt_ids(messages, None if tools is None else json.loads(tools))
                if tokens is not None:
                    found[identity] = (identity, messages, tokens)
    if len(found) < (options.sample or 0):
        warn([f"--sample {options.sample}: the split {options.eval_split} has {len(found)} prompts that can be written to"])
    return Samples(trainer, options, [found[identity] for identity in wanted if identity in found])
