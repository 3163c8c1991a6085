"""The plan of the test server: which models it plays, what it can and cannot do, how slow it is and what goes wrong.

A plan is a JSON object; every key has a default, an unknown one is an error. `Plan.read({})` is a fast, faultless server.

    models            name → {bias, noise, scale, tau, mass, leniency, token_style, thinking, capabilities}, see JudgeModel
    defaults          the same fields for models that are not listed, and for fields that a listed model leaves out
    any_model         true: a model that is not listed exists too; false: 404 model_not_found
    capabilities      what the endpoint can do, see CAPABILITIES
    faults            list of faults, see server_faults.Fault; the first that matches a request is the one
    latency           seconds, or {median, p99} in seconds: lognormal, drawn by seed and sequence number
    rate_limit        {requests_per_minute, tokens_per_minute, burst_seconds, retry_after}, see RateLimit
    api_keys          the keys that are let in, everything else gets 401; null: any, and none
    seed              of latencies and of faults by probability
    keep_bodies       true: the log holds every chat request's body
    batch_seconds     from the creation of a batch to its end (validating 10%, in progress 80%, finalizing 10%)
    batch_max_requests, batch_max_bytes, batch_enqueued_tokens    limits; a batch beyond them fails
    batch_expire      {share, times}: so many batches expire when that share of their requests is done
    batch_fail        {code, message, line, times}: so many batches fail at validation
    down              seconds for which nothing listens, from now on: an action, not a state
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from server_faults import Fault

__all__ = ["CAPABILITIES", "Capabilities", "JudgeModel", "Latency", "Plan", "PlanError", "RateLimit"]

CAPABILITIES: dict[str, tuple[str, ...]] = {
    # off: "logprobs": null. empty: accepted, and the key is absent. no_content: {"content": []}. 400: refused.
    "logprobs": ("on", "off", "empty", "no_content", "400"),
    "n": ("honoured", "ignored", "400"),
    # 400: wants max_completion_tokens, as the o-series does.
    "max_tokens": ("accepted", "400"),
    # 400: only the default of 1 is allowed.
    "temperature": ("accepted", "400"),
    # ignored: answers with the object inside prose and a fence.
    "json_schema": ("honoured", "ignored", "400", "500"),
    "usage": ("present", "null"),
    # finish_reason of a reply that is exactly as long as the limit: the end-of-text token would have been one more.
    "at_limit": ("length", "stop"),
}
"""Each capability of the endpoint and the values that a plan may give it; the first is the default."""

TOKEN_STYLES = ("plain", "space")
RETRY_AFTER = ("both", "seconds", "ms", "none")


class PlanError(ValueError):
    """A plan that is wrong: what was given and what is allowed."""


@dataclass(frozen=True)
class Capabilities:
    """One value a capability, of those in CAPABILITIES."""

    logprobs: str = "on"
    n: str = "honoured"
    max_tokens: str = "accepted"
    temperature: str = "accepted"
    json_schema: str = "honoured"
    usage: str = "present"
    at_limit: str = "length"

    def __post_init__(self) -> None:
        for name, allowed in CAPABILITIES.items():
            if getattr(self, name) not in allowed:
                raise PlanError(f"capability {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")


@dataclass(frozen=True)
class JudgeModel:
    """How a simulated judge grades; the formulas are in server_judge.

    bias: added to the margin of whatever is shown first, in grades. noise: standard deviation of the judge's own error, in
    grades. scale: grades per standard deviation of latent quality. tau: width of its distribution over grades. mass:
    probability, in (0, 1], that the reply's token is a grade at all. leniency: added to single grades. token_style: plain
    ("C") or space (" C" mostly, "C" and "c" sometimes). thinking: replies begin with a thinking block that holds another verdict.
    """

    bias: float = 0.0
    noise: float = 0.6
    scale: float = 1.0
    tau: float = 0.7
    mass: float = 0.97
    leniency: float = 0.0
    token_style: str = "plain"
    thinking: bool = False
    capabilities: Capabilities = Capabilities()

    def __post_init__(self) -> None:
        if self.token_style not in TOKEN_STYLES:
            raise PlanError(f"token_style is {self.token_style!r}; allowed: {', '.join(TOKEN_STYLES)}")
        if not 0 < self.mass <= 1 or self.tau <= 0 or self.noise < 0:
            raise PlanError(f"mass must be in (0, 1], tau above 0 and noise 0 or more; given {self.mass}, {self.tau}, {self.noise}")


@dataclass(frozen=True)
class Latency:
    """Lognormal with this median and this 99th percentile, in seconds; equal ones make it constant."""

    median: float = 0.0
    p99: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.median <= self.p99 or (self.p99 and not self.median):
            raise PlanError(f"latency needs 0 < median <= p99, in seconds; given {self.median} and {self.p99}")


@dataclass(frozen=True)
class RateLimit:
    """Buckets that hold burst_seconds' worth, start full and refill evenly. retry_after: which headers a 429 carries."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_seconds: float = 60.0
    retry_after: str = "both"

    def __post_init__(self) -> None:
        if self.retry_after not in RETRY_AFTER:
            raise PlanError(f"rate_limit.retry_after is {self.retry_after!r}; allowed: {', '.join(RETRY_AFTER)}")


@dataclass(frozen=True)
class Expire:
    """The next `times` batches expire with that share of their requests done."""

    share: float = 0.5
    times: int = 1


@dataclass(frozen=True)
class Fail:
    """The next `times` batches fail at validation."""

    code: str = "invalid_json_line"
    message: str = "This line is not parseable as valid JSON."
    line: int | None = 1
    times: int = 1


T = TypeVar("T")


def build(cls: type[T], given: Any, where: str) -> T:
    """A dataclass of a JSON object; PlanError for anything else and for unknown keys."""
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise PlanError(f"{where} must be an object with keys of: {', '.join(names)}; given {given!r}")
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise PlanError(f"{where} has no key {unknown[0]!r}; known: {', '.join(names)}")
    try:
        return cls(**given)
    except (TypeError, ValueError) as problem:
        raise PlanError(f"{where}: {problem}") from None


@dataclass(frozen=True)
class Plan:
    """A plan whose parts are checked; the keys are explained at the top of this module."""

    models: dict[str, JudgeModel] = field(default_factory=dict)
    defaults: JudgeModel = JudgeModel()
    any_model: bool = True
    capabilities: Capabilities = Capabilities()
    faults: tuple[Fault, ...] = ()
    latency: Latency = Latency()
    rate_limit: RateLimit | None = None
    api_keys: list[str] | None = None
    seed: int = 0
    keep_bodies: bool = False
    batch_seconds: float = 0.0
    batch_max_requests: int = 50_000
    batch_max_bytes: int = 200_000_000
    batch_enqueued_tokens: int | None = None
    batch_expire: Expire | None = None
    batch_fail: Fail | None = None
    down: float = 0.0

    @staticmethod
    def read(given: Mapping[str, Any]) -> "Plan":
        """The plan of a JSON object."""
        plan = dict(given)
        shared = dict(plan.get("capabilities", {}))
        plan["capabilities"] = build(Capabilities, shared, "capabilities")
        defaults = dict(plan.get("defaults", {}))
        models = dict(plan.get("models", {}))
        plan["defaults"] = _model(defaults, shared, "defaults")
        plan["models"] = {name: _model({**defaults, **one}, shared, f"models.{name}") for name, one in models.items()}
        latency = plan.get("latency", 0.0)
        plan["latency"] = Latency(latency, latency) if isinstance(latency, int | float) else build(Latency, latency, "latency")
        plan["faults"] = tuple(build(Fault, one, f"faults[{i}]") for i, one in enumerate(plan.get("faults", ())))
        for key, cls in (("rate_limit", RateLimit), ("batch_expire", Expire), ("batch_fail", Fail)):
            if plan.get(key) is not None:
                plan[key] = build(cls, plan[key], key)
        return build(Plan, plan, "the plan")

    def model(self, name: str) -> JudgeModel | None:
        """The model of that name, None where it does not exist."""
        return self.models.get(name) or (self.defaults if self.any_model else None)


def _model(given: dict[str, Any], shared: dict[str, Any], where: str) -> JudgeModel:
    own = {**shared, **given.get("capabilities", {})}
    return build(JudgeModel, {**given, "capabilities": build(Capabilities, own, f"{where}.capabilities")}, where)
