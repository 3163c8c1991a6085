"""The options of `mmpo score`, and the models that grade. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mmpo.pipeline.engines import ENGINES, check_engine
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import Count, OneOf, Positive, TextOrPath, keys_of_model, options, options_from


@options
class ScoreOptions:
    """How models grade completions; what is not given is as each model was trained. `mmpo.train.score` takes the same by name."""

    reference: TextOrPath | None = None
    """Reference model of policies; as each was trained."""
    beta: Positive | None = None
    """β of a policy's implicit reward; as it was trained, else .1."""
    max_length: Count | None = None
    """Longest prompt and completion, in tokens; longer completions lose their end (counted); else 1024, or what the model takes."""
    max_prompt_length: Count | None = None
    """Longest prompt, in tokens; the completions of longer ones get no grade (counted); else 512, or half of what the model takes."""
    thinking: Literal["keep", "drop"] | None = None
    """Thinking in replies, keep or drop; as the model was trained, else keep."""
    graded_part: Literal["answer", "all"] | None = None
    """The part of a reply that is graded, answer or all; as the model was trained, else all."""
    tokens_per_batch: Count | None = None
    """Tokens that go through the model at once; default: 4096 on a CPU, else 16384."""
    layout: Literal["auto", "tree", "rows"] = "auto"
    """tree: shared prompts computed once; rows: one padded row a completion; auto: tree where a probe shows that it is exact."""
    bf16: bool = False
    """Compute in bfloat16."""
    cache: TextOrPath | None = None
    """Folder that keeps every value as soon as it is computed; default: the user's cache folder, as for a policy's reference."""
    chat_template: Annotated[TextOrPath, Field(min_length=1)] = "tokenizer"
    """tokenizer (the model's own), plain, or a file with a Jinja template."""
    trust_remote_code: bool = False
    """Run code that comes with a model; only for models you trust."""
    engine: Annotated[str, OneOf(ENGINES)] = "local"
    """Where models compute: local, in this process, or ray: on the GPUs (without any, the CPUs) of a Ray cluster, or of a Ray of its own on
    this machine."""
    ray_address: str | None = None
    """The head of a running Ray, HOST:PORT or auto, for --engine ray (RAY_ADDRESS; else one is started on this machine for the run)."""
    workers: Count | None = None
    """For --engine ray: processes that hold the model (one for each GPU, without any one for each CPU)."""

    def __post_init__(self) -> None:
        check_engine(self.engine, self.ray_address, self.workers)
        if self.cache is not None and (Path(self.cache).is_file() or self.cache.endswith((".sqlite", ".parquet"))):
            raise UserError(f"cache {self.cache}: name a folder; each model's values get a file of their own in it")


@options
class Scorer:
    """One model that grades: a folder or a Hugging Face name. rater: its name in FEEDBACK (the folder's, unless given)."""

    model: TextOrPath
    rater: str = ""
    reference: TextOrPath | None = None
    beta: Positive | None = None
    chat_template: TextOrPath | None = None

    @property
    def name(self) -> str:
        """Its name as a rater."""
        return self.rater or (Path(self.model).resolve().name if Path(self.model).exists() else self.model)


def scorers_of(given: str | Path | Mapping[str, Any] | Sequence[Any]) -> list[Scorer]:
    """The models of a run: "MODEL" or "MODEL,rater=NAME,reference=...", or mappings, one or several.

    Raises UserError: none, an unknown key, two of one name.

    >>> [one.name for one in scorers_of(["org/one", "org/two,rater=second"])]
    ['org/one', 'second']
    """
    several = [given] if isinstance(given, str | Path | Mapping) else list(given)
    if not several:
        raise UserError("name the model that grades: --model DIR, repeated for several")
    scorers = [
        options_from(Scorer, keys_of_model(Scorer, one, "model that grades", "--model"), where="--model: ") for one in several
    ]
    names = [one.name for one in scorers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two models are called {twice[0]!r} as raters: give one a name of its own, --model DIR,rater=NAME")
    return scorers
