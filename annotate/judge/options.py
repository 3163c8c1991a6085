"""The options of `mmpo judge`, one dataclass for flags, recipes and Python; and the judges that it asks."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmpo.annotate.client import OPENAI, EndpointSettings, public_url
from mmpo.annotate.judge.modes import MODES, reply_format
from mmpo.annotate.judge.rubrics import find_rubrics
from mmpo.annotate.pairings import parse_pairing
from mmpo.pipeline.errors import UserError, unknown_name

__all__ = ["Judge", "JudgeOptions", "check_judge_options", "judges_of", "parse_judge"]


def _option(default: Any, text: str) -> Any:
    if default is dict:
        return field(default_factory=dict, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class JudgeOptions:
    """What a judging run does; the field names are the recipe's keys. `mmpo judge --help` explains each."""

    mode: str = _option("pairwise", "pairwise (how much better), pointwise (each reply by itself) or listwise (all at once).")
    model: str | None = _option(None, "The judge's model, as its endpoint calls it; several judges: --judge.")
    base_url: str = _option(OPENAI, "The endpoint: any server that speaks OpenAI's chat completions.")
    api_key_env: str = _option("OPENAI_API_KEY", "The environment variable that holds the API key; never given as an option.")
    rubrics: tuple[str, ...] = _option(("overall",), "What is judged: names of rubrics or .yaml files, separated by commas.")
    pairs: str = _option(
        "auto", "Which pairs: all, chain, best-worst, random:k; auto is all up to 4 completions, else chain + random:n."
    )
    orders: str = _option(
        "auto", "both: every pair in both orders; one: in one, drawn by hash. auto: both for pairwise, one for listwise."
    )
    reasoning: bool = _option(False, "Let the judge think before its verdict: dearer, slower, and its certainty collapses.")
    reference: str | None = _option(None, "Key of FEEDBACK's `extra` that holds a reference answer to show the judge.")
    template: str | None = _option(None, "A prompt template of your own, a .j2 file.")
    reply: str | None = _option(None, "How the reply is read, for templates of your own; `mmpo replies` lists the ways.")
    logprobs: str = _option(
        "auto", "auto: use token probabilities where one probe finds them; off: never; need: refuse to go on without."
    )
    samples: int = _option(5, "Replies drawn a request where the endpoint gives no token probabilities.")
    min_mass: float = _option(0.5, "Least probability that must lie on the offered grades; below it the reply counts as failed.")
    temperature: float | None = _option(None, "Sampling temperature. Default: 0, and 1 where several replies are drawn.")
    max_tokens: int | None = _option(None, "Longest reply in tokens. Default: 8, listwise 16 a reply, 1024 more with reasoning.")
    structured: str = _option("auto", "auto: ask for JSON by schema where the endpoint honours it (listwise); off: never.")
    extra_body: str | None = _option(None, "JSON object sent along with every request, for settings of a particular server.")
    limit: int | None = _option(None, "Judge so many prompts only, drawn by hash: a pilot.")
    seed: int = _option(0, "Seed of everything drawn: pairs, orders, shuffles, pilot.")
    concurrency: int = _option(64, "Most requests in flight at a judge; fewer for a while after a 429.")
    requests_per_minute: float | None = _option(None, "The endpoint's limit of requests a minute.")
    tokens_per_minute: float | None = _option(None, "The endpoint's limit of tokens a minute.")
    timeout: float = _option(120.0, "Seconds until a request that got no reply counts as lost and is asked again.")
    retries: int = _option(6, "How often a request is asked again after passing faults.")
    patience: float = _option(300.0, "Seconds to wait for an endpoint that can't be reached at all.")
    max_cost: float | None = _option(
        None, "Budget in US dollars for all that the journal holds; stops cleanly before it is passed."
    )
    prices: str | None = _option(None, "A price table of your own, a .yaml file like annotate/client/prices.yaml.")
    batch: bool = _option(False, "Use the endpoint's Batch API: half the price at OpenAI, up to a day.")
    batch_poll: float = _option(30.0, "Seconds between looks at the batches.")
    batch_requests: int = _option(50_000, "Most requests in one batch file.")
    batch_bytes: int = _option(190_000_000, "Most bytes in one batch file.")
    cache: bool = _option(True, "Use the answers that the journal holds; --no-cache asks everything anew.")
    journal: str | None = _option(None, "The journal of answers, an SQLite file. Default: beside --out, OUT.judge.sqlite.")


@dataclass(frozen=True)
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


NUMBERS = {"concurrency": int, "requests_per_minute": float, "tokens_per_minute": float}
SHARED = ("base_url", "api_key_env", "requests_per_minute", "tokens_per_minute")


def parse_judge(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """The keys of one judge: "MODEL" or "MODEL,base_url=...,rater=...", or a mapping. Raises UserError."""
    known = [name for name in Judge.__dataclass_fields__ if name != "same_model"]
    if isinstance(given, str):
        model, *rest = given.split(",")
        pairs = [part.partition("=") for part in rest]
        if any(not equals for _, equals, _ in pairs):
            raise UserError(f"--judge {given}: write MODEL,key=value,...; keys: {', '.join(known[1:])}")
        values: dict[str, Any] = {"model": model.strip(), **{key.strip(): value.strip() for key, _, value in pairs}}
    else:
        values = dict(given)
    for key in values:
        if key not in known:
            raise unknown_name("key of a judge", key, known)
    if not values.get("model"):
        raise UserError(f"a judge needs a model; given: {given!r}")
    if not isinstance(values.get("extra_body", {}), Mapping):
        raise UserError(
            f"a judge's extra_body must be a mapping (in a recipe), not {values['extra_body']!r}; for all judges: --extra-body"
        )
    for key, kind in NUMBERS.items():
        if values.get(key) is not None:
            try:
                values[key] = kind(values[key])
            except (TypeError, ValueError):
                raise UserError(f"a judge's {key} must be a number, not {values[key]!r}") from None
            _positive(f"a judge's {key}", values[key])
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
    asked = [parse_judge(one) for one in given] or [{"model": options.model}]
    judges = [Judge(**{**shared, **values, "extra_body": {**extra, **values.get("extra_body", {})}}) for values in asked]
    alike = [(judge.model, json.dumps(judge.extra_body, sort_keys=True)) for judge in judges]
    judges = [replace(judge, same_model=alike.count(own) > 1) for judge, own in zip(judges, alike)]
    names = [judge.name for judge in judges]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two judges are called {twice[0]!r}: give one a name of its own, --judge {twice[0]},rater=...")
    for judge in judges:
        parts = urlsplit(judge.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_good_port(judge.base_url):
            raise UserError(f"base_url {judge.base_url!r} is no address; for example http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"base_url {public_url(judge.base_url)}: an address with a password or a key in it would end up in files; give the key "
                f"by the environment variable {judge.api_key_env}"
            )
    return judges


def _has_good_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def json_object(text: str | None) -> dict[str, Any]:
    """The JSON object of `--extra-body`. Raises UserError."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"--extra-body: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"--extra-body: a JSON object is needed, not {text!r}")
    clash = sorted(set(value) & {"model", "messages", "n", "logprobs", "top_logprobs", "stream"})
    if clash:
        raise UserError(f"--extra-body: {', '.join(clash)} is set by the run itself")
    return value


CHOICES = {
    "mode": tuple(MODES),
    "orders": ("auto", "both", "one"),
    "logprobs": ("auto", "off", "need"),
    "structured": ("auto", "off"),
}


def _positive(name: str, value: float | None, least: float = 0.0) -> None:
    if value is not None and not (least < value < math.inf):
        raise UserError(f"{name} {value}: must be a number above {least:g}")


def check_judge_options(options: JudgeOptions) -> None:
    """Refuse values and combinations that cannot work, before anything is read or asked. Raises UserError."""
    for name, allowed in CHOICES.items():
        if getattr(options, name) not in allowed:
            raise unknown_name(f"--{name}", getattr(options, name), allowed)
    for name in ("samples", "concurrency", "max_tokens", "limit", "batch_requests", "batch_bytes", "timeout", "batch_poll", "max_cost",
                 "requests_per_minute", "tokens_per_minute"):  # fmt: skip
        _positive("--" + name.replace("_", "-"), getattr(options, name))
    for name in ("retries", "patience"):
        if not 0 <= getattr(options, name) < math.inf:
            raise UserError(f"--{name} {getattr(options, name)}: must be a number from 0 up")
    if not 0 <= options.min_mass <= 1:
        raise UserError(f"--min-mass {options.min_mass}: must be a probability from 0 to 1")
    if options.temperature is not None and not 0 <= options.temperature <= 2:
        raise UserError(f"--temperature {options.temperature}: must lie between 0 and 2")
    parse_pairing(options.pairs)
    json_object(options.extra_body)
    rubrics = find_rubrics(options.rubrics)
    if reply_format(options).grades == "aspects":
        scales = {str((rubric.grades if MODES[options.mode].signed else rubric.scale).labels) for rubric in rubrics}
        if len(scales) > 1:
            raise UserError("--reply aspects-json grades all rubrics in one reply, on one scale; those given have different ones")
    if options.template is not None and not Path(options.template).is_file():
        raise UserError(f"--template {options.template}: no such file")
