"""What a training run is told: one frozen record that the command line, the recipes and Python share. Imports no torch."""

import math
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import MAPPED, NUMBER, AtLeastZero, Count, Gamma, OneOf, Positive, TextOrPath, options
from mmpo.train.objective import (
    CONTROLS,
    TARGETS,
    check_control,
    check_policy_terms,
    check_reward_terms,
    parse_terms,
    write_options,
    write_terms,
)

MAX_SEED = 2**32 - 1
"""numpy takes no larger one."""
_PASS_TOKENS, _PASS_TOKENS_ON_CPU = 16384, 4096
"""Of a CPU larger passes leave the caches."""
_RATES = {"tiny": (1e-3, 1e-2, 1e-2), "policy": (5e-7, 5e-5, 2e-4), "reward": (3e-6, 1e-4, 2e-4)}
"""Peak learning rates of all weights, of the uppermost layers alone, and of a LoRA adapter, which starts as zero and has few weights.
All weights: the paper's. Adapters: QLoRA's of 7B and 13B models (arXiv 2305.14314), between TRL's dpo.py (5e-6) and dpo_llama2.py (5e-4).
On SmolLM2-135M, rank 16, 24 steps of 12 pairs, a policy's mean |z| is .06 at 5e-5, .22 at 2e-4, .34 at 5e-4; at 1e-3 its loss jumps.
"""
_HEAD_RATE = 1e-3
"""Of a score layer alone, in some 200 steps; from 1e-3 to 3e-3 none was better on held-out prompts of six makers' models."""
ALL_LINEAR = "all-linear"
OPTIMIZERS = {"adamw": "adamw_torch", "adamw-8bit": "adamw_bnb_8bit", "paged-adamw-8bit": "paged_adamw_8bit"}
"""The optimizers of a run, and what transformers calls them."""


def _joined(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


@options
class TrainOptions:
    """The options of one training run; the line below each field is its help. Creating one checks it.

    >>> import tempfile
    >>> import pyarrow as pa
    >>> from mmpo.pipeline import build_pairs, read_feedback, write_dataset
    >>> both = (("It is.", 5), ("No.", 2))
    >>> rows = [{"prompt": f"Is {n} even?", "completion": text, "score": score} for n in range(6) for text, score in both]
    >>> pairs = build_pairs(read_feedback(pa.Table.from_pylist(rows), scale=(1, 5)))
    >>> from mmpo.train import train_reward
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_dataset(pairs, f"{folder}/pairs", split=(1, 0, 0))
    ...     small = {"tiny_size": 16, "tiny_layers": 1, "eval_split": None, "max_steps": 1}
    ...     options = TrainOptions("reward", data=f"{folder}/pairs", model="tiny", out=f"{folder}/model", **small)
    ...     train_reward(options)["steps"]  # or train_policy, of the kind policy
    1
    """

    kind: Literal["policy", "reward"]
    """what is trained: policy (a causal language model) or reward (a scorer)"""
    data: TextOrPath = ""
    """dataset folder made by `mmpo build`"""
    model: TextOrPath = "tiny"
    """`tiny` (built from the data), a model folder, or a Hugging Face name"""
    out: TextOrPath = ""
    """folder for the trained model; the same command resumes a run that stopped"""
    loss: str | dict[str, Any] = "mmpo"
    """objective, or weighted terms: mmpo=1,sft=0.1; `mmpo losses` lists them"""
    loss_options: Annotated[dict[str, Any], MAPPED] = Field(default_factory=dict)
    """options of the objective: epsilon=0.2, or with several terms cdpo.epsilon=0.2"""
    loss_learning_rate: Positive = 0.01
    """peak rate of what the objective itself learns: ordinal's thresholds, davidson's nu (of their logarithms)"""
    length_normalised: bool = False
    """policy: the logit is made of log-ratios averaged per token, whatever the objective; needs a larger --beta"""
    gamma: Gamma = "auto"
    """margin to probability; auto: the γ of a stated mean target (`mmpo gamma` says which); auto:.9 names another"""
    target: Annotated[str, OneOf(TARGETS)] = "plain"
    """how margins become targets: {names}"""
    control: Annotated[str | None, OneOf(CONTROLS)] = None
    """train a control, to hold a model against: matched (every untied pair gets their mean target, constant smoothing) or shuffled (margins
    permuted over the untied pairs of all prompts)"""
    beta: Positive = 0.1
    """policy: weight of the log-ratio in the logit (the paper: .01)"""
    learning_rate: Positive | None = None
    """peak rate; default: 1e-3 for tiny, else 5e-7 policy, 3e-6 reward; with --lora 1e-2 for tiny, else 2e-4; with --trainable top:N
    1e-2, 5e-5 and 1e-4; with --trainable head 1e-3"""
    epochs: Positive = 1.0
    """passes over the training prompts"""
    max_steps: Count | None = None
    """stop after this many steps, whatever the epochs say"""
    more_steps: Count | None = None
    """steps beyond those of the epochs, or of max_steps; a run that ended without them goes on to them from its last checkpoint"""
    pairs_per_step: Count = 64
    """a step holds at least so many pairs, in whole prompts"""
    tokens_per_batch: Count | None = None
    """tokens computed at once, padding included; default: 4096 on a CPU, else 16384"""
    layout: Literal["auto", "tree", "rows"] = "auto"
    """tree: shared prompts computed once; rows: one padded row a completion; auto: tree where a probe shows that it is exact"""
    max_length: Count = 1024
    """tokens of prompt and completion; longer completions lose their end (counted)"""
    max_prompt_length: Count = 512
    """tokens of a prompt; longer prompts are dropped (counted)"""
    thinking: Literal["keep", "drop"] | None = None
    """thinking in replies (<think> ... </think>, reasoning_content): keep renders it, drop leaves it out (both counted); default: keep,
    but drop for a reward model of graded answers"""
    graded_part: Literal["answer", "all"] | None = None
    """what the grades are of: all of a reply, or its answer alone: a policy then reads the thinking and is trained on the answer; default:
    what the dataset's manifest says, else all"""
    weight: Literal["pair", "prompt"] = "pair"
    """pair: every pair counts 1; prompt: 1 / pairs of its prompt"""
    source_weights: Annotated[dict[str, AtLeastZero], MAPPED] = Field(default_factory=dict)
    """what a pair of a source counts for, times --weight: name=2,other=0.5; 0: left out; not named: 1; default: the weights that a build of
    several sources was given, else 1 each"""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of the steps in which the rate rises"""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """how the rate falls: linear, cosine, constant, constant_with_warmup"""
    weight_decay: AtLeastZero = 0.0
    """AdamW's weight decay"""
    max_grad_norm: AtLeastZero = 1.0
    """gradients are clipped to this norm; 0: not at all"""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), NUMBER] = 0
    """order of the prompts and the weights of new layers"""
    dropout: bool = False
    """keep the model's own dropout while training"""
    bf16: bool = False
    """compute in bfloat16 (weights stay in float32)"""
    gradient_checkpointing: bool = False
    """recompute activations instead of keeping them"""
    lora: Count | None = None
    """train a LoRA adapter of this rank instead of all weights"""
    lora_alpha: Positive | None = None
    """what an adapter's change of the weights is multiplied by, over its rank; default: twice the rank, so that it counts double"""
    lora_targets: Annotated[str, Field(min_length=1), BeforeValidator(_joined)] = ALL_LINEAR
    """linear modules that get an adapter, by the ends of their names, comma-separated: q_proj,v_proj, or self_attn.q_proj; all-linear: all
    but the output layer"""
    lora_dropout: Annotated[float, Field(ge=0, lt=1), NUMBER] = 0.0
    """share of an adapter's inputs that each training pass leaves out"""
    load_in: Literal["4bit", "8bit"] | None = None
    """hold the frozen weights below an adapter in 4 bits (NF4, QLoRA) or 8 (LLM.int8()); needs a GPU, bitsandbytes and --lora"""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"
    """{names}; those of 8 bits, whose states take a quarter of the memory, need a GPU and bitsandbytes; paged: they move to the
    machine's memory where the GPU's is full"""
    trainable: Annotated[str, Field(pattern=r"^(all|head|top:[1-9][0-9]*)$", examples=["all", "head", "top:4"])] = "all"
    """all, or top:N, N from 1 up: only the uppermost N layers and what comes after them, or head: of a reward model its score layer
    alone; what lies below is computed once for every completion"""
    layers: Count | None = None
    """reward: use only the lowest N layers of the model: half-way up, hidden states often say more of a reply's quality than at the top,
    for half the price; default: all"""
    reference: TextOrPath | None = None
    """policy: reference model; default: the model as it is before training"""
    reference_cache: TextOrPath | None = None
    """folder or .sqlite file of the reference's log-probabilities; default: the user's cache folder"""
    ties: Literal["keep", "drop"] = "keep"
    """drop: leave out pairs of margin 0 even if the loss can use them"""
    eval_split: Literal["train", "validation", "test"] | None = "validation"
    """split measured during training; null: none"""
    eval_steps: Count | None = None
    """measure every so many steps; default: five times a run"""
    sample: Count | None = None
    """policy: at every evaluation show replies to so many prompts of the evaluation split, always the same, and keep them in
    samples.jsonl"""
    sample_tokens: Count = 128
    """tokens of such a reply at most"""
    early_stopping: Count | None = None
    """stop after so many evaluations without a better eval loss; the best checkpoint is kept"""
    logging_steps: Count | None = None
    """log every so many steps; default: at most 200 times a run"""
    report_to: str | None = None
    """trackers of transformers, e.g. tensorboard,wandb; default: none"""
    save_steps: Count = 100
    """checkpoint every so many steps; the newest two are kept, with early_stopping the best one of them"""
    resume: bool = True
    """go on from the last checkpoint in the output folder; no: start again"""
    tiny_size: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """width of the tiny model (a multiple of 16)"""
    tiny_layers: Count = 2
    """layers of the tiny model"""
    tiny_vocab: Annotated[int, Field(ge=300)] = 2048
    """vocabulary of the tiny model's tokenizer"""
    chat_template: Annotated[TextOrPath, Field(min_length=1)] = "tokenizer"
    """tokenizer (the model's own), plain, or a file with a Jinja template; saved with the model"""
    ask: Annotated[str, Field(min_length=1)] | None = None
    """reward: a question put behind every reply, such as "Is this a good answer?": the score is read at its end, where a model that follows
    instructions has more to say of the whole reply than at its last word; saved with the model, as a part of its chat template"""
    trust_remote_code: bool = False
    """run the model's own code; only for models you trust"""

    def __post_init__(self) -> None:
        terms = parse_terms(self.loss)
        object.__setattr__(self, "loss", write_terms(terms))  # one way to write it, wherever it came from
        object.__setattr__(self, "loss_options", write_options(terms, self.loss_options))
        if self.max_prompt_length >= self.max_length:
            raise UserError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}), "
                f"so that every completion has room; set both, as with --max-prompt-length {max(1, self.max_length // 2)}"
            )
        if self.model == "tiny" and self.lora and self.reference:
            raise UserError("a tiny model's adapter finds its base where its reference is kept: leave out `reference` or `lora`")
        self._check_adapter()
        if self.top_layers is not None:
            self._check_top_layers()
        if self.ask is not None and self.kind == "policy":
            raise UserError("ask puts a question behind replies that are scored; a policy scores none: leave out `ask`")
        if self.trainable == "head" and self.kind == "policy":
            raise UserError("trainable 'head' is a reward model's score layer alone; a policy has none: give top:N, or all")
        if self.layers is not None and (self.kind == "policy" or self.model == "tiny"):
            raise UserError(
                "layers leaves the uppermost layers of a pretrained reward model out: "
                + ("a policy's output layer needs them all" if self.kind == "policy" else "tiny has tiny_layers for that")
                + "; leave out `layers`"
            )
        if self.sample is not None:
            self._check_sample()
        if self.early_stopping is not None and self.eval_split is None:
            raise UserError("early_stopping compares evaluations on held-out pairs: give eval_split, or leave it out")
        if self.control is not None:
            check_control(self.control, terms)
        if self.kind == "policy":
            check_policy_terms(terms)
        if self.kind == "reward":
            if self.reference is not None:
                raise UserError("a reward model has no reference: leave out `reference`")
            check_reward_terms(terms)
            if self.length_normalised:
                raise UserError(
                    "length_normalised averages log-probabilities per token, which a reward model has none of: it works for policies only"
                )
            if self.graded_part == "answer" and self.thinking == "keep":
                raise UserError(
                    "a reward model scores a whole reply, with its thinking if it is there: give --thinking drop where the answer alone "
                    "was graded"
                )

    def _check_adapter(self) -> None:
        """Raises UserError for what only an adapter has, where none is trained."""
        given = {"lora_alpha": self.lora_alpha, "lora_targets": self.lora_targets != ALL_LINEAR, "lora_dropout": self.lora_dropout}
        for name in (name for name, value in given.items() if value and not self.lora):
            raise UserError(f"{name} is of an adapter, and none is trained: give its rank as well (--lora 16), or leave it out")
        if self.load_in is not None and not self.lora:
            raise UserError(
                f"load_in {self.load_in}: weights of so few bits can't be trained, an adapter above them can: give --lora 16"
            )
        if self.load_in is not None and self.model == "tiny":
            raise UserError("load_in: a tiny model is built, not loaded; leave it out")

    def _check_sample(self) -> None:
        """Raises UserError where no replies can be shown."""
        if self.kind == "reward":
            raise UserError("sample shows what a policy writes; a reward model writes nothing: leave out `sample`")
        if self.eval_split is None:
            raise UserError("sample replies to prompts of the evaluation split: give eval_split, or leave it out")
        if self.top_layers is not None:
            raise UserError(
                f"sample and trainable {self.trainable!r} exclude each other (what lies below is known of given texts alone)"
            )

    def _check_top_layers(self) -> None:
        """Raises UserError for what can't be had with the uppermost layers alone."""
        for name, why in (
            ("lora", "an adapter trains few weights in all layers, this all weights of few layers"),
            ("dropout", "layers with dropout give something else at every pass, and those below are computed once"),
            ("gradient_checkpointing", "the activations of the layers below are not kept anyway"),
        ):
            if getattr(self, name):
                raise UserError(f"trainable {self.trainable!r} and {name} exclude each other ({why}): leave out one of them")

    @property
    def top_layers(self) -> int | None:
        """How many of the uppermost layers train, 0 where the score layer alone does; None: all."""
        if self.trainable in ("all", "head"):
            return None if self.trainable == "all" else 0
        return int(self.trainable.removeprefix("top:"))

    def as_dict(self) -> dict[str, Any]:
        """All options as JSON values; an infinite gamma is the string 'inf'."""
        values = asdict(self)
        if isinstance(self.gamma, float) and math.isinf(self.gamma):
            values["gamma"] = "inf"
        return values

    @property
    def resolved_learning_rate(self) -> float:
        """The peak learning rate, with the default for this kind of run filled in."""
        return self.usual_learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def usual_learning_rate(self) -> float:
        """The peak learning rate that a run of this kind has unless another is given."""
        if self.trainable == "head":
            return _HEAD_RATE
        part = 2 if self.lora is not None else int(self.top_layers is not None)
        return _RATES["tiny" if self.model == "tiny" else self.kind][part]


def pass_tokens(given: int | None, device: Any) -> int:
    """Tokens of a pass at most: the number given, or the default of the device (of torch, or its name).

    >>> pass_tokens(None, "cpu"), pass_tokens(None, "cuda:0"), pass_tokens(500, "cpu")
    (4096, 16384, 500)
    """
    if given is not None:
        return given
    return _PASS_TOKENS_ON_CPU if str(device).startswith("cpu") else _PASS_TOKENS


@options
class LocalOptions:
    """A language model on this machine that answers prompts: what `mmpo generate --local MODEL,key=value,...` takes."""

    model: str
    """A folder or a Hugging Face name."""
    called: str = ""
    """Its name in FEEDBACK (what is given as the model, without a / at its end)."""
    batch: Count = 16
    """Replies that it writes at a time."""
    chat_template: str = "tokenizer"
    """tokenizer (its own), plain, or a Jinja file."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    @property
    def name(self) -> str:
        """Its name in FEEDBACK: a folder's without the / that shells add, which would make it another model."""
        return self.called or self.model.rstrip("/")
