"""The options of everything that asks models at endpoints, and the models that a run names, each with keys of its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from mmpo.annotate.client import EndpointSettings, Headers, Prices, base_url_of, check_address, public_url
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import (
    ENGINE_OPTIONS,
    NUMBER,
    AtLeastZero,
    Count,
    Flags,
    Positive,
    TextOrPath,
    keys_of_model,
    options,
    options_from,
    unwritable,
)
from mmpo.pipeline.storage import cache_folder, text_digest, url_of

NOT_OF_THE_RECIPE = (
    "journal", "concurrency", "timeout", "retries", "patience", "batch_poll", "requests_per_minute", "tokens_per_minute",
    *ENGINE_OPTIONS,
)  # fmt: skip
"""Options that change how fast or where, never what comes out."""
OF_THE_RUN_ITSELF = frozenset(("model", "messages", "n", "logprobs", "top_logprobs", "stream"))
"""Keys of a request that no user sets."""


@options
class AskingOptions:
    """How models at endpoints are asked: where, how fast, for how much, and where their answers are kept."""

    base_url: str | None = None
    """The endpoint: any server that speaks OpenAI's chat completions; a query goes along with every request. Default: OPENAI_BASE_URL of
    the environment, else OpenAI."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the API key; never given as an option."""
    headers: Annotated[Headers, Flags("--header")] = Field(default_factory=dict)
    """NAME=VALUE, a header that goes along with every request; NAME=env:VARIABLE takes the value from the environment, as keys must be.
    May be repeated."""
    extra_body: str | None = None
    """JSON object sent along with every request, for settings of a particular server."""
    limit: Count | None = None
    """Ask about so many prompts only, drawn by hash: a pilot."""
    seed: Annotated[int, NUMBER] = 0
    """Seed of everything drawn."""
    concurrency: Count = 64
    """Most requests in flight at a model; fewer for a while after a 429."""
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
    """The journal of answers, an SQLite file. Default: beside --out, OUT and the command's name, .judge.sqlite or .generate.sqlite."""


SHARED = ("base_url", "api_key_env", "headers", "requests_per_minute", "tokens_per_minute")
"""Options that are keys of a model as well; what a model does not say itself comes from them."""

Kind = TypeVar("Kind", bound=EndpointSettings)


def asked_models(
    kind: type[Kind], options: AskingOptions, given: Sequence[str | Mapping[str, Any]], word: str, flag: str
) -> list[Kind]:
    """The models of a run as objects of `kind`, each from "MODEL", "MODEL,key=value,..." or a mapping; the options fill in SHARED.

    word, flag: what a model is called in messages, and the option that names it. Raises UserError.
    """
    extra = json_object(options.extra_body)
    shared = {name: getattr(options, name) for name in SHARED}
    shared["base_url"], where = base_url_of(options.base_url)
    asked = [keys_of_model(kind, one, word, flag) for one in given]
    models = [options_from(kind, {**shared, "extra_body": {}, **values}, where=f"a {word}'s ") for values in asked]
    models = [replace(one, extra_body={**extra, **one.extra_body}) for one in models]
    for one in models:
        check_address(one, where if one.base_url == shared["base_url"] else "base_url")
    return models


def recorded(options: AskingOptions) -> dict[str, Any]:
    """The options that a manifest keeps."""
    kept = {key: value for key, value in asdict(options).items() if key not in NOT_OF_THE_RECIPE}
    return kept | {"base_url": options.base_url and public_url(options.base_url)}


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
    clash = sorted(set(value) & OF_THE_RUN_ITSELF)
    if clash:
        raise UserError(f"--extra-body: {', '.join(clash)} is set by the run itself")
    return value


def check_prices(options: AskingOptions, models: Sequence[EndpointSettings], prices: Prices) -> None:
    """Raise UserError where a budget is given and the price of one of the models is not known."""
    for one in models if options.max_cost is not None else ():
        if prices.of(one.model) is None:
            raise UserError(
                f"--max-cost needs the price of {one.model!r}, which the table does not have; give it by --prices mine.yaml "
                f"(models: {{{one.model}: [dollars a million prompt tokens, dollars a million reply tokens]}})"
            )


def journal_of(out: str | Path, options: AskingOptions, command: str) -> Path:
    """The journal's file: as the options name it, else beside the output folder; of an address in an object store, in the cache."""
    if not options.journal and (url := url_of(out)):
        (folder := cache_folder("journals")).mkdir(parents=True, exist_ok=True)
        return folder / f"{text_digest(url.rstrip('/'))}.{command}.sqlite"
    return Path(options.journal) if options.journal else Path(f"{str(out).rstrip('/')}.{command}.sqlite")
