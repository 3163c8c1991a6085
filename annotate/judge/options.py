"""The options of `mmpo judge`, one dataclass for flags, recipes and Python; and the judges that it asks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mmpo.annotate.client import EndpointSettings, Headers, base_url_of, check_address
from mmpo.annotate.judge.modes import MODES, reply_format
from mmpo.annotate.judge.rubrics import find_rubrics
from mmpo.annotate.pairings import parse_pairing
from mmpo.annotate.replies import REPLIES
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.options import (
    LISTED,
    NUMBER,
    AtLeastZero,
    Count,
    Flags,
    OneOf,
    Positive,
    Share,
    TextOrPath,
    fields_of,
    options,
    options_from,
    unwritable,
)


@options
class JudgeOptions:
    """What a judging run does. The field names are the recipe's keys, the line below each is its help."""

    mode: Annotated[str, OneOf(MODES)] = "pairwise"
    """How judges are asked: {names}; `mmpo list modes` says more."""
    model: str | None = None
    """The judge's model, as its endpoint calls it; several judges: --judge."""
    base_url: str | None = None
    """The endpoint: any server that speaks OpenAI's chat completions; a query goes along with every request. Default: OPENAI_BASE_URL of
    the environment, else OpenAI."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the API key; never given as an option."""
    headers: Annotated[Headers, Flags("--header")] = Field(default_factory=dict)
    """NAME=VALUE, a header that goes along with every request; NAME=env:VARIABLE takes the value from the environment, as keys must be.
    May be repeated."""
    rubrics: Annotated[tuple[str, ...], LISTED, Flags("--rubric", "--rubrics")] = ("overall",)
    """What is judged: names of rubrics or .yaml files, separated by commas."""
    pairs: str = "auto"
    """Which pairs: all, chain, best-worst, random:k; auto is all up to 4 completions, else chain + random:n."""
    orders: Literal["auto", "both", "one"] = "auto"
    """both: every pair in both orders; one: in one, drawn by hash. auto: both for pairwise, one for listwise."""
    reasoning: bool = False
    """Let the judge think before its verdict: dearer, slower, and its certainty collapses."""
    reference: str | None = None
    """Key of FEEDBACK's `extra` that holds a reference answer to show the judge."""
    template: TextOrPath | None = None
    """A prompt template of your own, a .j2 file."""
    reply: Annotated[str | None, OneOf(REPLIES)] = None
    """How the reply is read, for templates of your own; `mmpo replies` lists the ways."""
    logprobs: Literal["auto", "off", "need"] = "auto"
    """auto: use token probabilities where one probe finds them; off: never; need: refuse to go on without."""
    samples: Count | None = None
    """Replies drawn a question. Default: 5 without token probabilities; with them 1, of judges that think first also more."""
    min_mass: Share = 0.5
    """Least probability that must lie on the offered grades; below it the reply counts as failed."""
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    """Sampling temperature. Default: 0, and 1 where several replies are drawn."""
    max_tokens: Count | None = None
    """Longest reply in tokens. Default: 8, listwise 16 a reply, 1024 more with reasoning."""
    structured: Literal["auto", "off"] = "auto"
    """auto: ask for JSON by schema where the endpoint honours it (listwise); off: never."""
    extra_body: str | None = None
    """JSON object sent along with every request, for settings of a particular server."""
    limit: Count | None = None
    """Judge so many prompts only, drawn by hash: a pilot."""
    seed: Annotated[int, NUMBER] = 0
    """Seed of everything drawn: pairs, orders, shuffles, pilot."""
    concurrency: Count = 64
    """Most requests in flight at a judge; fewer for a while after a 429."""
    requests_per_minute: Positive | None = None
    """The endpoint's limit of requests a minute."""
    tokens_per_minute: Positive | None = None
    """The endpoint's limit of tokens a minute."""
    timeout: Positive = 120.0
    """Seconds for a whole request, to the last byte of its reply; then it counts as lost and is asked again."""
    retries: Annotated[int, Field(ge=0)] = 6
    """How often a request is asked again after passing faults."""
    patience: AtLeastZero = 300.0
    """Seconds to wait for an endpoint that can't be reached at all, or answers 429 before the run has begun."""
    max_cost: Positive | None = None
    """Budget in US dollars for all that the journal holds; stops cleanly before it is passed."""
    prices: TextOrPath | None = None
    """A price table of your own, a .yaml file like annotate/client/prices.yaml."""
    batch: bool = False
    """Use the endpoint's Batch API: half the price at OpenAI, up to a day."""
    batch_poll: Positive = 30.0
    """Seconds between looks at the batches."""
    batch_requests: Count = 50_000
    """Most requests in one batch file."""
    batch_bytes: Count = 190_000_000
    """Most bytes in one batch file."""
    cache: bool = True
    """Use the answers that the journal holds; --no-cache asks everything anew."""
    journal: TextOrPath | None = None
    """The journal of answers, an SQLite file. Default: beside --out, OUT.judge.sqlite."""

    def __post_init__(self) -> None:
        parse_pairing(self.pairs)
        json_object(self.extra_body)
        rubrics = find_rubrics(self.rubrics)
        if reply_format(self).grades == "aspects":
            scales = {str((rubric.grades if MODES[self.mode].signed else rubric.scale).labels) for rubric in rubrics}
            if len(scales) > 1:
                raise UserError(
                    "--reply aspects-json grades all rubrics in one reply, on one scale; those given have different ones"
                )
        if self.template is not None and not Path(self.template).is_file():
            raise UserError(f"--template {self.template}: no such file")


@options
class Judge(EndpointSettings):
    """One judge: a model at an endpoint. rater: its name in FEEDBACK (its model's, unless given).

    same_model: another judge of the run has the same model and settings, at another address: their answers are kept apart by name.
    """

    rater: str = ""
    same_model: bool = False

    @property
    def name(self) -> str:
        """Its name as a rater."""
        return self.rater or self.model


SHARED = ("base_url", "api_key_env", "headers", "requests_per_minute", "tokens_per_minute")


def _keys_of(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """The keys of one judge: "MODEL" or "MODEL,base_url=...,rater=...", or a mapping. Raises UserError."""
    known = [name for name in fields_of(Judge) if name != "same_model"]
    if isinstance(given, str):
        model, *rest = given.split(",")
        pairs = [part.partition("=") for part in rest]
        if any(not equals for _, equals, _ in pairs):
            raise UserError(f"--judge {given}: write MODEL,key=value,...; keys: {', '.join(known[1:])}")
        given = {"model": model, **{key.strip(): value for key, _, value in pairs}}
    values = {key: value.strip() if isinstance(value, str) else value for key, value in given.items() if value is not None}
    for key in values:
        if key not in known:
            raise unknown_name("key of a judge", key, known)
    if not values.get("model"):
        raise UserError(f"a judge needs a model; given: {given!r}")
    return values


def judges_of(options: JudgeOptions, given: list[str] | list[Mapping[str, Any]] | tuple[Any, ...] = ()) -> list[Judge]:
    """The judges of a run: those of `--judge`, else the one of `--model`; what a judge does not say comes from the options.

    Raises UserError: none named, two with one name.
    """
    if bool(given) == bool(options.model):
        raise UserError(
            "name the judge by --model, or several by --judge (repeated), not both" if given else "name a judge: --model NAME"
        )
    extra = json_object(options.extra_body)
    shared = {name: getattr(options, name) for name in SHARED}
    shared["base_url"], where = base_url_of(options.base_url)
    asked = [_keys_of(one) for one in given] or [{"model": options.model}]
    judges = [options_from(Judge, {**shared, "extra_body": {}, **values}, where="a judge's ") for values in asked]
    judges = [replace(judge, extra_body={**extra, **judge.extra_body}) for judge in judges]
    alike = [(judge.model, json.dumps(judge.extra_body, sort_keys=True)) for judge in judges]
    judges = [replace(judge, same_model=alike.count(own) > 1) for judge, own in zip(judges, alike)]
    names = [judge.name for judge in judges]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two judges are called {twice[0]!r}: give one a name of its own, --judge {twice[0]},rater=...")
    for judge in judges:
        check_address(judge, where if judge.base_url == shared["base_url"] else "base_url")
    return judges


def json_object(text: str | None) -> dict[str, Any]:
    """The JSON object of `--extra-body`. Raises UserError."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"--extra-body: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"--extra-body: a JSON object is needed, not {text!r}")
    if (wrong := unwritable(value)) is not None:
        raise UserError(f"--extra-body: {wrong!a} holds half a character (a lone surrogate), which can't be sent")
    clash = sorted(set(value) & {"model", "messages", "n", "logprobs", "top_logprobs", "stream"})
    if clash:
        raise UserError(f"--extra-body: {', '.join(clash)} is set by the run itself")
    return value
