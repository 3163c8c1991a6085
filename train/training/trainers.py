"""The two trainers. Policy: z = β·[(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))]. Reward: z = r(x, y_w) − r(x, y_l),
and the pad token that makes a saved reward model readable to others.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import MicroBatch, Step
from mmpo.train.data import PromptPairs
from mmpo.train.distributed import any_process, from_all
from mmpo.train.inference import adapter_off, cached_logprobs
from mmpo.train.model import bfloat16_on_cpu, keep_lowest, load_pretrained
from mmpo.train.objective import Lists, Logits
from mmpo.train.options import TrainOptions
from mmpo.train.training.trainer import MarginTrainer

_KNOWN_PADS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]")


class PolicyTrainer(MarginTrainer):
    """Trains a causal language model on quality margins; the other arguments are `MarginTrainer`'s.

    beta: weight of the log-ratio. ref_model: the reference; by default the model itself as it is when the trainer is
    made. Its log-probabilities are computed once per completion, before the first step, and kept in the folder or SQLite
    file `reference_cache` if one is named (True: the user's cache folder). own_reference: whether reference values that the
    prompts bring are this very model's, so that the first step checks it. length_normalised: every term's z, and the one that is
    measured, is made of log-ratios averaged per token.
    """

    kind = "policy"

    def __init__(
        self,
        *args: Any,
        beta: float = 0.1,
        ref_model: nn.Module | None = None,
        reference_cache: str | Path | Literal[True] | None = None,
        own_reference: bool | None = None,
        length_normalised: bool = False,
        **options: Any,
    ) -> None:
        self.beta, self.ref_model, self.own_reference, self.length_normalised = beta, ref_model, own_reference, length_normalised
        self.reference_cache = None if reference_cache is True else reference_cache or False
        super().__init__(*args, **options)
        self.ref_model = None

    def complete(self, prompts: list[PromptPairs], model: nn.Module, args: TrainingArguments) -> list[PromptPairs]:
        """The prompts with the reference's log-probabilities, unless all bring them; those that no step comes to stay without."""
        known = all(prompt.reference is not None for prompt in prompts)
        if self.own_reference is None:
            self.own_reference = self.ref_model is None and not known
        if known:
            return prompts
        how: dict[str, Any] = {"tokens": self.tokens_per_batch, "pad_token": self.pad_token, "layout": self.layout}
        how |= {"tokenizer": self.rendering[0], "device": args.device, "bf16": args.bf16}
        self.args, self.last_step = args, None  # a plan reads them
        comes, held_out = np.zeros(len(self.prompts), dtype=bool), len(prompts) - len(self.prompts)
        comes[np.concatenate(self.plan())] = True
        places = np.flatnonzero(np.append(comes, np.ones(held_out, dtype=bool)))
        wanted = cached_logprobs(self.ref_model or model, [prompts[place] for place in places], self.reference_cache, **how)
        filled = list(prompts)
        for place, prompt in zip(places, wanted, strict=True):
            filled[place] = prompt
        if self.ref_model is not None:
            self.ref_model = self.ref_model.to("cpu")  # not needed again, and the policy comes to the device
        return filled

    def pair_logits(self, values: Tensor, batch: MicroBatch) -> tuple[Logits, dict[str, Tensor]]:
        """z, z from means per token and the chosen one's −log-probability per token; log-probabilities and rewards of both."""
        rewards, tokens = self.beta * (values - batch.reference), batch.counts.to(values.dtype)
        means, nll = rewards / tokens, -(values / tokens)[batch.chosen]
        of_each = means if self.length_normalised else rewards
        z, z_mean = (value[batch.chosen] - value[batch.rejected] for value in (of_each, means))
        return Logits(z, z_mean, nll, lists=lists_of(of_each, batch)), {
            "logps/chosen": values[batch.chosen],
            "logps/rejected": values[batch.rejected],
            "rewards/chosen": rewards[batch.chosen],
            "rewards/rejected": rewards[batch.rejected],
            "nll/chosen": nll,
        }

    def training_step(self, model: nn.Module, inputs: Step, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """A step; before the very first, the policy must still equal its own reference."""
        if self.state.global_step == 0 and self.own_reference and not self.dropout:
            self.check_first_step(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    @torch.no_grad()
    def check_first_step(self, step: Step) -> None:
        """Raises UserError unless log-probabilities in training mode equal the reference's, so that every z is 0.

        Tolerance of a completion of n tokens: .001·√n nats and 1e-5 of the value; .1·√n and .5% in bfloat16, where kernels
        that round differently than the reference's are .01 to .03 nats off in each token, and a router of experts more.
        Dropout would fail it, and so would reference values of other weights.
        """
        self.model.train()
        part = step.batches[0].parts[0] if step.batches else step.idle  # one pass in every process; of an idle one nothing is known
        counts = part.counts.to(self.args.device)
        reference = step.batches[0].reference[: len(counts)] if step.batches else torch.zeros(len(counts))
        reference = reference.to(self.args.device)
        with self._as_reference(), bfloat16_on_cpu(self.model_wrapped, self.args.bf16):
            off = (self.values(self.model_wrapped, part) - reference).abs()
        absolute, relative = (0.1, 5e-3) if self.args.bf16 else (1e-3, 1e-5)
        allowed = absolute * counts.to(off) ** 0.5 + relative * reference.abs()
        wrong = bool(step.batches) and not bool((off <= allowed).all())
        if any_process(wrong, self.args.device):
            most = max(from_all(lambda: float(off.max()) if wrong else 0.0))
            without = ", try it without --bf16" if self.args.bf16 else ""
            raise UserError(
                "first-step check failed: policy and reference are the same model, yet a completion's log-probability "
                f"differs by {most:.4g} nats. If the reference values belong to other weights, delete that reference cache or name "
                f"another (--reference-cache){without}; if the model is not deterministic in training mode because of dropout "
                "that is wanted, give --dropout, which leaves this check out"
            )

    def _as_reference(self) -> AbstractContextManager[Any]:
        """The model with its adapter off, which need not start as zero. Split by FSDP it can't be switched: what is frozen at
        the first pass stays so.
        """
        return nullcontext() if hasattr(self.model, "set_requires_gradient_sync") else adapter_off(self.model)


class RewardTrainer(MarginTrainer):
    """Trains a sequence classifier with one label; the arguments are `MarginTrainer`'s.

    A model whose pad token is missing or equals the end-of-text token gets one of its own (`own_pad_token`), so that
    `AutoModelForSequenceClassification` reads the saved folder to the same scores.
    """

    kind = "reward"

    def __init__(self, model: nn.Module, *args: Any, processing_class: Any, **options: Any) -> None:
        own_pad_token(model, processing_class)
        super().__init__(model, *args, processing_class=processing_class, **options)

    def pair_logits(self, values: Tensor, batch: MicroBatch) -> tuple[Logits, dict[str, Tensor]]:
        """z (pairs,), and both completions' scores, each (pairs,)."""
        chosen, rejected = values[batch.chosen], values[batch.rejected]
        rewards = {"rewards/chosen": chosen, "rewards/rejected": rejected}
        return Logits(chosen - rejected, sum=chosen + rejected, lists=lists_of(values, batch)), rewards


def lists_of(z: Tensor, batch: MicroBatch) -> Lists:
    """The completions of a micro-batch for terms of whole prompts; z: (completions,)."""
    return Lists(z, batch.scores, batch.prompts, batch.prompts[batch.chosen])


def merged_in_full(trainer: MarginTrainer, options: TrainOptions) -> Any:
    """A reward model with the adapter that was trained above weights of few bits added to them in float32: merged into its own weights, the
    sum would be rounded to as few. Nothing of the adapter's folder, which lies in the run's for a moment, is left.
    """
    from peft import PeftModel

    whole, _ = load_pretrained(options.kind, options.model, trust_remote_code=options.trust_remote_code, new_head=True)
    if options.layers is not None:
        keep_lowest(whole, options.layers)
    own_pad_token(whole, trainer.processing_class)
    with TemporaryDirectory(dir=options.out, prefix=".adapter-") as scratch:
        trainer.model.save_pretrained(scratch)  # type: ignore[operator]
        return PeftModel.from_pretrained(whole, scratch).merge_and_unload()  # type: ignore[operator]


def own_pad_token(model: Any, tokenizer: Any) -> None:
    """Sees to a pad token that is not the end of text, in tokenizer and model, and to its place behind the texts; embeddings grow by a row
    only if they must.

    transformers pools at the last token that is not pad; with pad = eos that is a token early, or before the reply
    where the template ends turns with eos. Padding before a text would move the positions of a model that counts them itself (GPT-2).
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((name for name in _KNOWN_PADS if name in vocabulary), "<|pad|>")
        if tokenizer.pad_token not in vocabulary:
            tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
