"""Planned faults of the test server: which requests they strike, and what they make of the answer.

A fault names its kind (a key of FAULTS) and conditions; it strikes a request that meets all of them. Chances are drawn from the
seed, the body's digest and how often that body has come, so they do not depend on the order in which requests arrive.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import blake2b
from typing import Any

import orjson
from server_http import Answer, error_answer

__all__ = ["FAULTS", "ROUTES", "Fault", "FaultBook", "Seen", "chance"]

ROUTES = (
    "chat", "batch_line", "models", "files.create", "files.get", "files.content", "files.list", "files.delete",
    "batches.create", "batches.get", "batches.list", "batches.cancel",
)  # fmt: skip
"""What a fault may strike; `batch_line` is a chat request inside a batch."""

Choice = dict[str, Any]


def _filtered(choice: Choice) -> None:
    choice["message"]["content"], choice["finish_reason"], choice["logprobs"] = None, "content_filter", None


def _refused(choice: Choice) -> None:
    choice["message"].update(content=None, refusal="I'm sorry, but I cannot help with comparing these.")
    choice["logprobs"] = None


def _cut(choice: Choice) -> None:
    text = choice["message"]["content"]
    choice["message"]["content"], choice["finish_reason"] = text[: len(text) // 2], "length"
    if choice.get("logprobs"):
        tokens = choice["logprobs"]["content"]
        choice["logprobs"]["content"] = tokens[: len(tokens) // 2]


def _rambled(choice: Choice) -> None:
    choice["message"]["content"], choice["logprobs"] = "Both have their merits, and it is hard to say more.", None


def _silent(choice: Choice) -> None:
    choice["logprobs"] = None


@dataclass(frozen=True)
class Kind:
    """One kind of fault. stage: "status" answers at once and nothing is done; "reply" changes each choice of the reply, "body"
    its bytes, "wire" how it is sent; "delay" only slows; "down" ends this and all other
    connections and closes the listening socket."""

    stage: str
    status: int = 200
    code: str | None = None
    type: str = "invalid_request_error"
    message: str = ""
    param: str | None = None
    choice: Callable[[Choice], None] | None = None


FAULTS: dict[str, Kind] = {
    "rate_limit": Kind("status", 429, "rate_limit_exceeded", "requests", "Rate limit reached for requests."),
    "quota": Kind("status", 429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
    "server_error": Kind("status", 500, None, "server_error", "The server had an error while processing your request."),
    "bad_gateway": Kind("status", 502, None, "server_error", "Bad gateway."),
    "unavailable": Kind("status", 503, None, "server_error", "The engine is currently overloaded."),
    "auth": Kind("status", 401, "invalid_api_key", message="Incorrect API key provided."),
    "forbidden": Kind("status", 403, "forbidden", message="Your project has no access to this model."),
    "model": Kind("status", 404, "model_not_found", message="The model does not exist or you have no access to it.", param="model"),
    "context": Kind(
        "status", 400, "context_length_exceeded", message="This model's maximum context length is 8192 tokens.", param="messages"
    ),
    "content_policy": Kind(
        "status", 400, "content_filter", message="The response was filtered by the content management policy.", param="prompt"
    ),
    "status": Kind("status", 400, None, message="Planned error."),
    "empty_choices": Kind("reply"),
    "content_filter": Kind("reply", choice=_filtered),
    "refusal": Kind("reply", choice=_refused),
    "length": Kind("reply", choice=_cut),
    "unparsable": Kind("reply", choice=_rambled),
    "no_logprobs": Kind("reply", choice=_silent),
    "low_mass": Kind("reply"),
    "bad_json": Kind("body"),
    "cut_json": Kind("body"),
    "reset": Kind("wire"),
    "close": Kind("wire"),
    "hang": Kind("wire"),
    "slow": Kind("delay"),
    "down": Kind("down"),
}
"""The family of faults. `status` takes any status, code and message of the plan. `reset` sends half of the reply and resets the
connection, `close` ends it before the status line, `hang` never answers: all three after the work was done. `bad_json` is a
200 with a page of HTML, `cut_json` half of the JSON with a content-length that fits."""


@dataclass(frozen=True)
class Fault:
    """One planned fault: all conditions that are given must hold.

    at: sequence numbers on its route, from 1. probability: in [0, 1]. prefix: of the body's digest. contains: in the prompt
    (chat) or in the body (other routes). model: the model asked for. attempts: only the first so many times that a body
    comes. times: strikes so many times in all. seconds: delay of the answer (`slow`, `status` kinds), or how long `down` is.
    retry_after, retry_after_ms, retry_after_date: the header, its value counted in seconds, milliseconds, and seconds from
    now. mass: what `low_mass` leaves to the grades. status, code, message, headers: replace those of the kind.
    """

    kind: str
    route: str = "chat"
    at: list[int] | None = None
    probability: float | None = None
    prefix: str | None = None
    contains: str | None = None
    model: str | None = None
    attempts: int | None = None
    times: int | None = None
    seconds: float = 0.0
    retry_after: float | None = None
    retry_after_ms: float | None = None
    retry_after_date: float | None = None
    mass: float = 0.05
    status: int | None = None
    code: str | None = None
    message: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise ValueError(f"unknown fault {self.kind!r}; known: {', '.join(FAULTS)}")
        if self.route not in ROUTES:
            raise ValueError(f"unknown route {self.route!r} of a fault; known: {', '.join(ROUTES)}")
        stage = FAULTS[self.kind].stage
        if stage == "reply" and self.route not in ("chat", "batch_line"):
            raise ValueError(f"the fault {self.kind!r} changes a chat reply and cannot strike the route {self.route!r}")
        if self.route == "batch_line" and stage not in ("status", "reply"):
            raise ValueError(f"the fault {self.kind!r} is one of connections and cannot strike a line of a batch")

    @property
    def stage(self) -> str:
        """Where it strikes, see Kind."""
        return FAULTS[self.kind].stage

    def error(self) -> Answer:
        """The answer of a status fault."""
        kind = FAULTS[self.kind]
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["retry-after"] = f"{self.retry_after:g}"
        if self.retry_after_ms is not None:
            headers["retry-after-ms"] = f"{self.retry_after_ms:g}"
        if self.retry_after_date is not None:
            headers["retry-after"] = formatdate(math.ceil(time.time() + self.retry_after_date), usegmt=True)
        code = self.code if self.code is not None else kind.code
        answer = error_answer(self.status or kind.status, self.message or kind.message, kind.type, kind.param, code, headers)
        if self.kind == "bad_gateway":  # a proxy's page, no API's JSON
            answer.body, answer.content_type = b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html"
        return answer

    def spoil_reply(self, reply: dict[str, Any]) -> None:
        """Changes a chat reply in place."""
        if self.kind == "empty_choices":
            reply["choices"] = []
        change = FAULTS[self.kind].choice
        if change is not None:
            for choice in reply["choices"]:
                change(choice)

    def spoil_answer(self, answer: Answer) -> None:
        """Changes the bytes of an answer or the way it is sent, in place."""
        if self.kind == "bad_json":
            answer.body = b"<html><body>upstream connect error</body></html>"
        elif self.kind == "cut_json":
            answer.body = answer.body[: len(answer.body) // 2]
        elif self.stage == "wire":
            answer.cut = self.kind


@dataclass(frozen=True)
class Seen:
    """A request as faults see it; attempt counts from 1, text gives the prompt or body when asked."""

    route: str
    seq: int
    digest: str
    attempt: int
    model: str
    text: Callable[[], str]


def chance(*parts: object) -> float:
    """A number in (0, 1) that depends on the parts only."""
    number = int.from_bytes(blake2b(orjson.dumps(parts), digest_size=8).digest()) >> 12
    return (number + 0.5) / 2**52


class FaultBook:
    """The faults of a plan and how often each has struck."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self.seed = seed
        self.faults = list(faults)
        self.struck = [0] * len(self.faults)

    def find(self, seen: Seen) -> Fault | None:
        """The first fault that strikes this request; it is counted."""
        for number, fault in enumerate(self.faults):
            if self._strikes(number, fault, seen):
                self.struck[number] += 1
                return fault
        return None

    def _strikes(self, number: int, fault: Fault, seen: Seen) -> bool:
        if fault.route != seen.route or (fault.times is not None and self.struck[number] >= fault.times):
            return False
        return (
            (fault.at is None or seen.seq in fault.at)
            and (fault.attempts is None or seen.attempt <= fault.attempts)
            and (fault.model is None or fault.model == seen.model)
            and (fault.prefix is None or seen.digest.startswith(fault.prefix))
            and (fault.contains is None or fault.contains in seen.text())
            and (fault.probability is None or chance(self.seed, number, seen.digest, seen.attempt) < fault.probability)
        )
