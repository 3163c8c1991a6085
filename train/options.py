"""What a training run is told: one frozen record that the command line, the recipes and Python share. Imports no torch.

The field names are the recipe's keys and, with dashes, the command's flags; `option_help` gives each its line of help.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.train.objective import TARGETS, check_reward_terms, parse_terms, write_terms

__all__ = ["LAYOUTS", "PAIR_PARTS", "SCHEDULES", "TrainOptions", "check_source_weights", "option_help"]

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
PAIR_PARTS = ("train", "validation", "test")
LAYOUTS = ("auto", "tree", "rows")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training run. Creating one checks it: UserError names what was given and what is allowed."""

    kind: Literal["policy", "reward"]
    data: str = _option("", "dataset folder made by `mmpo build`")
    model: str = _option("tiny", "`tiny` (built from the data), a model folder, or a Hugging Face name")
    out: str = _option("", "folder for the trained model; the same command resumes a run that stopped")
    loss: str | dict[str, Any] = field(
        default="mmpo", metadata={"help": "objective, or weighted terms: mmpo=1,sft=0.1; `mmpo losses` lists them"}
    )
    loss_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the objective: epsilon=0.2, or with several terms cdpo.epsilon=0.2"}
    )
    gamma: float | Literal["auto"] = _option("auto", "margin to probability; auto: the mean target is .75")
    target: str = _option("plain", "how margins become targets: plain, noise-aware, measured")
    beta: float = _option(0.1, "policy: weight of the log-ratio in the logit (the paper: .01)")
    learning_rate: float | None = _option(None, "peak rate; default: 1e-3 for tiny, else 5e-7 policy, 3e-6 reward")
    epochs: float = _option(1.0, "passes over the training prompts")
    max_steps: int | None = _option(None, "stop after this many steps, whatever the epochs say")
    pairs_per_step: int = _option(64, "a step holds at least so many pairs, in whole prompts")
    tokens_per_batch: int | None = _option(None, "tokens computed at once, padding included; default: 4096 on a CPU, else 16384")
    layout: Literal["auto", "tree", "rows"] = _option(
        "auto",
        "tree: shared prompts computed once; rows: one padded row a completion; auto: tree where a probe shows that it is exact",
    )
    max_length: int = _option(1024, "tokens of prompt and completion; longer completions lose their end (counted)")
    max_prompt_length: int = _option(512, "tokens of a prompt; longer prompts are dropped (counted)")
    weight: Literal["pair", "prompt"] = _option("pair", "pair: every pair counts 1; prompt: 1 / pairs of its prompt")
    source_weights: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "what a pair of a source counts for, times --weight: name=2,other=0.5; 0: left out; not named: 1"},
    )
    warmup_ratio: float = _option(0.1, "share of the steps in which the rate rises")
    schedule: str = _option("cosine", "how the rate falls: " + ", ".join(SCHEDULES))
    weight_decay: float = _option(0.0, "AdamW's weight decay")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm; 0: not at all")
    seed: int = _option(0, "order of the prompts and the weights of new layers")
    dropout: bool = _option(False, "keep the model's own dropout while training")
    bf16: bool = _option(False, "compute in bfloat16 (weights stay in float32)")
    gradient_checkpointing: bool = _option(False, "recompute activations instead of keeping them")
    lora: int | None = _option(None, "train a LoRA adapter of this rank instead of all weights")
    reference: str | None = _option(None, "policy: reference model; default: the model as it is before training")
    reference_cache: str | None = _option(
        None, "folder or .sqlite file of the reference's log-probabilities; default: the user's cache folder"
    )
    ties: Literal["keep", "drop"] = _option("keep", "drop: leave out pairs of margin 0 even if the loss can use them")
    eval_split: str | None = _option("validation", "split measured during training; null: none")
    eval_steps: int | None = _option(None, "measure every so many steps; default: five times a run")
    early_stopping: int | None = _option(
        None, "stop after so many evaluations without a better eval loss; the best checkpoint is kept"
    )
    logging_steps: int | None = _option(None, "log every so many steps; default: at most 200 times a run")
    report_to: str | None = _option(None, "trackers of transformers, e.g. tensorboard,wandb; default: none")
    save_steps: int = _option(
        100, "checkpoint every so many steps; the newest two are kept, with early_stopping the best one of them"
    )
    resume: bool = _option(True, "go on from the last checkpoint in the output folder; no: start again")
    tiny_size: int = _option(64, "width of the tiny model (a multiple of 16)")
    tiny_layers: int = _option(2, "layers of the tiny model")
    tiny_vocab: int = _option(2048, "vocabulary of the tiny model's tokenizer")
    chat_template: str = _option(
        "tokenizer", "tokenizer (the model's own), plain, or a file with a Jinja template; saved with the model"
    )
    trust_remote_code: bool = _option(False, "run the model's own code; only for models you trust")

    def __post_init__(self) -> None:
        _choice("kind", self.kind, ("policy", "reward"))
        object.__setattr__(self, "loss", write_terms(parse_terms(self.loss)))  # one way to write it, wherever it came from
        _choice("target", self.target, TARGETS)
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("weight", self.weight, ("pair", "prompt"))
        _choice("ties", self.ties, ("keep", "drop"))
        if not self.chat_template:
            raise UserError("chat_template is empty; give tokenizer (the model's own), plain, or a file with a Jinja template")
        _choice("layout", self.layout, LAYOUTS)
        check_source_weights(self.source_weights)
        if self.eval_split is not None:
            _choice("eval split", self.eval_split, PAIR_PARTS)
        if self.gamma != "auto" and not (_number(self.gamma) and self.gamma >= 0):
            raise UserError(f"gamma must be 'auto' or a number >= 0 (inf allowed), not {self.gamma!r}")
        for name in ("beta", "epochs", "max_length", "max_prompt_length", "pairs_per_step"):
            _above(name, getattr(self, name), 0, strict=True)
        optional = ("learning_rate", "max_steps", "eval_steps", "early_stopping", "logging_steps", "lora", "tokens_per_batch")
        for name in (*optional, "save_steps", "tiny_layers"):
            if getattr(self, name) is not None:
                _above(name, getattr(self, name), 0, strict=True)
        for name in ("weight_decay", "max_grad_norm"):
            _above(name, getattr(self, name), 0, strict=False)
        if not (_number(self.warmup_ratio) and 0 <= self.warmup_ratio < 1):
            raise UserError(f"warmup_ratio must lie in [0, 1), not {self.warmup_ratio!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:  # numpy takes no other
            raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}, not {self.seed!r}")
        if self.tiny_size < 16 or self.tiny_size % 16:
            raise UserError(f"tiny_size must be a positive multiple of 16, not {self.tiny_size!r}")
        if self.tiny_vocab < 300:
            raise UserError(f"tiny_vocab must be at least 300 (256 bytes + special tokens), not {self.tiny_vocab!r}")
        if self.max_prompt_length >= self.max_length:
            raise UserError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}), "
                "so that every completion has room"
            )
        if self.model == "tiny" and self.lora and self.reference:
            raise UserError("a tiny model's adapter finds its base where its reference is kept: leave out `reference` or `lora`")
        if self.early_stopping is not None and self.eval_split is None:
            raise UserError("early_stopping compares evaluations on held-out pairs: give eval_split, or leave it out")
        if self.kind == "reward":
            self._refuse_policy_only()

    def _refuse_policy_only(self) -> None:
        if self.reference is not None:
            raise UserError("a reward model has no reference: leave out `reference`")
        check_reward_terms(parse_terms(self.loss))

    def as_dict(self) -> dict[str, Any]:
        """All options as JSON values; an infinite gamma is the string 'inf'."""
        values = asdict(self)
        if isinstance(self.gamma, float) and math.isinf(self.gamma):
            values["gamma"] = "inf"
        return values

    @property
    def resolved_learning_rate(self) -> float:
        """The peak learning rate, with the default for this kind of model filled in."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.model == "tiny":
            return 1e-3
        return 5e-7 if self.kind == "policy" else 3e-6


def option_help() -> dict[str, str]:
    """One line of help for every option but `kind`, by field name."""
    return {item.name: item.metadata["help"] for item in fields(TrainOptions) if "help" in item.metadata}


def check_source_weights(weights: Mapping[str, Any]) -> None:
    """Raises UserError unless every weight is a finite number of at least 0."""
    for name, weight in weights.items():
        _above(f"the weight of source {name!r}", weight, 0, strict=False)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _choice(what: str, given: Any, allowed: Collection[str]) -> None:
    if given not in allowed:
        raise unknown_name(what, given, allowed)


def _above(name: str, value: Any, low: float, *, strict: bool) -> None:
    if not _number(value) or math.isinf(value) or (value <= low if strict else value < low):
        raise UserError(f"{name} must be a number {'above' if strict else 'of at least'} {low}, not {value!r}")
