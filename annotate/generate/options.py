"""The options of `mmpo generate`, one dataclass for flags and Python; and the models that it asks."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mmpo.annotate.asking import AskingOptions, asked_models, json_object
from mmpo.annotate.client import EndpointSettings
from mmpo.pipeline.engines import ENGINES, check_engine
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import LISTED, MAPPED, NUMBER, Count, OneOf, Share, options

Temperature = Annotated[float, Field(ge=0, le=2), NUMBER]


def _stops(value: Any) -> Any:
    """One text, or several as a JSON list: the texts may hold commas and line breaks."""
    if not isinstance(value, str):
        return value
    if not value.startswith("["):
        return (value,)
    try:
        return tuple(json.loads(value))
    except ValueError as error:
        raise ValueError(f"{value!r} begins as a JSON list and is none: {error}") from None


@options
class GenerateOptions(AskingOptions):
    """What a run of generating does: how prompts are read, what is sampled, what becomes a candidate."""

    n: Count = 4
    """Candidates that each model should have for a prompt; those that stand in the input already count."""
    format: str | None = None
    """The format of PROMPTS, as for `mmpo build`. Default: FEEDBACK of a folder, else by the files' names: jsonl, csv or parquet."""
    columns: Annotated[Mapping[str, str], MAPPED] = Field(default_factory=dict)
    """Names of the columns in generic files: prompt=COLUMN is enough."""
    scale: Annotated[tuple[float, float] | None, LISTED, Field(examples=["1:10"])] = None
    """The scale of scores that generic files hold already, low:high."""
    encoding: str | None = None
    """The encoding of text files (UTF-8, or what a byte-order mark says)."""
    sep: str | None = None
    """The separator of CSV (found in the header)."""
    sheet: str | None = None
    """The sheet of an Excel workbook (the only one)."""
    max_rejects: Share = 0.01
    """Largest share of unreadable or invalid lines before the run is refused."""
    system: str | None = None
    """A system prompt, sent where a prompt has none of its own; FEEDBACK's prompts stay as they are."""
    temperature: Temperature = 1.0
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: Annotated[float | None, Field(gt=0, le=1), NUMBER] = None
    """Sample from the likeliest tokens that have so much probability together."""
    max_tokens: Count = 1024
    """Longest reply in tokens, thinking included; a reply that reaches it is cut."""
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    """A text at which a reply ends, without it; several as a JSON list."""
    keep: Annotated[tuple[Literal["cut", "refused", "content_filter"], ...], LISTED] = ()
    """Replies that become candidates all the same, separated by commas: cut, refused, content_filter."""
    seed: Annotated[int, NUMBER] = 0
    """Every candidate's own seed is drawn from this one, its prompt's id and its number."""
    engine: Annotated[str, OneOf(ENGINES)] = "local"
    """Where models of --local write: local, in this process, or ray: on the GPUs (without any, the CPUs) of a Ray cluster, or of a Ray of
    its own on this machine."""
    ray_address: str | None = None
    """The head of a running Ray, HOST:PORT or auto, for --engine ray (RAY_ADDRESS; else one is started on this machine for the run)."""
    workers: Count | None = None
    """For --engine ray: processes that hold a model (one for each GPU, without any one for each CPU)."""

    def __post_init__(self) -> None:
        json_object(self.extra_body)
        check_engine(self.engine, self.ray_address, self.workers)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"stop: {list(self.stop)!r} must be texts, none of them empty")


@options
class SampledModel(EndpointSettings):
    """A model that writes candidates. called: its name in FEEDBACK (its model's, unless given); what is None is as the options say.

    same_model: another model of the run is the same one, at another address: their answers are kept apart by name.
    """

    called: str = ""
    temperature: Temperature | None = None
    top_p: Annotated[float | None, Field(gt=0, le=1), NUMBER] = None
    max_tokens: Count | None = None
    same_model: bool = False

    @property
    def name(self) -> str:
        """Its name in FEEDBACK."""
        return self.called or self.model


def sampled_models(options: GenerateOptions, given: Sequence[str | Mapping[str, Any]]) -> list[SampledModel]:
    """The models at endpoints. Raises UserError: two of one name."""
    models = asked_models(SampledModel, options, given, "model", "--model")
    alike = Counter(one.model for one in models)
    check_names([one.name for one in models])
    return [replace(one, same_model=alike[one.model] > 1) for one in models]


def check_names(names: Sequence[str]) -> None:
    """Raise UserError where two models have one name, or there is none."""
    if not names:
        raise UserError(
            "name a model: --model NAME for one at an endpoint, --local DIR for one on this machine; both may be repeated"
        )
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"two models are called {name!r}: give one a name of its own, --model {name},called=...")
