"""What can go wrong with a request, classified once, and how long to wait before the next try.

`failure_of` reads exceptions, `failure_of_status` statuses with what the body says in any shape (`refusal_of`):

rate_limit    429: wait as asked, ask again                   transient   5xx, reset, time-out, broken JSON: ask again
unreachable   connection refused: wait for the endpoint       request     this request can't be answered: leave it, go on
run           wrong key, unknown model, no credit: stop all
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from mmpo.annotate.client.request import Failure

MAX_RETRY_AFTER = 600.0
MAX_BACKOFF = 60.0
OF_THE_RUN = {
    "insufficient_quota": "the account has no credit left",
    "billing_hard_limit_reached": "the account's spending limit is reached",
    "invalid_api_key": "the API key is not accepted",
    "account_deactivated": "the account is deactivated",
    "model_not_found": "the endpoint has no such model",
}
"""Codes of errors that all requests would meet."""
OF_THE_RUN_BY_STATUS = {
    401: ("invalid_api_key", "the API key is not accepted"),
    402: ("insufficient_quota", "the account has no credit left"),
    403: ("forbidden", "the key has no access"),
    404: ("not_found", "the endpoint has no such model or address"),
}
"""What a status without one of those codes says of all requests."""
WORDS = (
    "message",
    "msg",
    "detail",
    "details",
    "error",
    "errors",
    "error_message",
    "reason",
    "description",
    "title",
    "metadata",
    "raw",
)
"""Keys under which servers and gateways put the words of a refusal, themselves or a further object of this kind."""
CODES = ("code", "type", "error_type", "status")
PLACES = ("param", "parameter", "loc", "field")
TOO_LONG = re.compile(
    r"max_(?:completion_)?tokens\b.*(?:too (?:large|big|high)|at most|exceed|maximum|less than|greater than|between|from 1 to)",
    re.IGNORECASE | re.DOTALL,
)
"""A refusal of how long a reply may be, rather than of the name under which that is said."""
PARAMETERS = {"logprobs", "max_completion_tokens", "max_tokens", "n", "response_format", "seed", "temperature", "top_logprobs"}
"""Those of a run's own requests; what users add may have names ("user") that a word about the key holds too."""
ABOUT_LENGTH = re.compile(r"context[ _]length|context window|too many tokens", re.IGNORECASE)
"""A refusal of a prompt that is too long names the reply's limit as one remedy; the parameter is not what is refused."""
MOST_WORDS = 500
"""Characters of a refusal that messages hold."""
OF_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
"""Faults of a connection that waiting does not mend."""
SHORTEST_KEY = 16
KEY_SHAPED = re.compile(r"\b(?:sk|pk|gsk|xai|hf|key)[-_][A-Za-z0-9_*-]{6,}")


def scrub(text: str, *secrets: str) -> str:
    """The text without the keys, and without what looks like one (endpoints echo them).

    >>> scrub("Incorrect API key provided: sk-abc***xyz1.")
    'Incorrect API key provided: [key].'
    """
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "[key]")
    return KEY_SHAPED.sub("[key]", text)


def without_key(text: str, *secrets: str) -> str:
    """A judge's words without the keys themselves. Nothing else is touched: a verdict may lie in "key-features"."""
    for secret in secrets:
        if len(secret) >= SHORTEST_KEY:
            text = text.replace(secret, "[key]")
    return text


@dataclass(frozen=True)
class Refusal:
    """What an error's body says, whatever its shape.

    codes: codes and types of all its levels, the outermost first; code: the first that is no type. places: the parameters it is about.
    """

    words: str
    codes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    code: str = ""

    @property
    def message(self) -> str:
        """The words, behind the parameters that they do not name themselves."""
        unnamed = [place for place in self.places if place not in self.words]
        return f"{', '.join(unnamed)}: {self.words}" if unnamed else self.words


def refusal_of(body: Any) -> Refusal:
    """Reads the body of an error: an object, a list, a text, JSON in a text, one inside the other.

    >>> refusal_of({"detail": [{"loc": ["body", "top_logprobs"], "msg": "Extra inputs are not permitted"}]}).message
    'top_logprobs: Extra inputs are not permitted'
    >>> refusal_of({"error": {"message": "no such model", "code": "model_not_found"}})
    Refusal(words='no such model', codes=('model_not_found',), places=(), code='model_not_found')
    """
    found: dict[str, list[str]] = {"words": [], "code": [], "codes": [], "places": []}
    for kind, said in _said(body, 0):
        text = said.encode(errors="replace").decode()  # half a character, which JSON may spell, fits into no journal
        if text and text not in found[kind]:
            found[kind].append(text)
    if not found["words"] and body:
        found["words"] = [body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)]
    words, codes = " ".join("; ".join(found["words"]).split()), (*found["code"], *found["codes"])
    return Refusal(words, codes, tuple(found["places"]), next(iter(found["code"]), ""))


def _said(value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """The words, codes and places in a body, as (kind, text)."""
    if depth > 8:
        return
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        inner = _json_in(value)
        if inner is None:
            yield "words", value.strip()
        else:
            yield from _said(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _said(one, depth + 1)
    elif isinstance(value, Mapping):
        lower = {str(key).lower(): one for key, one in value.items()}
        for key in CODES:
            if isinstance(lower.get(key), str | int) and not isinstance(lower[key], bool):
                yield "code" if key == "code" else "codes", str(lower[key])
        for key in PLACES:
            place = lower.get(key)
            for one in place if isinstance(place, list | tuple) else (place,):
                if isinstance(one, str) and one != "body":
                    yield "places", one
        for key in WORDS:
            if lower.get(key):
                yield from _said(lower[key], depth + 1)


def _json_in(text: str) -> Any:
    """The object or list that a text spells, or None."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return None


def named_parameter(body_or_message: Any, sent: Iterable[str]) -> str | None:
    """Which of the parameters that were sent a refusal is about, by its words, whatever its status; None: it names none of them.

    body_or_message: the body of the refusal in any shape, or the message of a Failure. sent: names of parameters. The one that the body
    itself says it is about comes first, then the one named first. Case, and a space or hyphen for an underscore, do not matter.

    >>> named_parameter("max_tokens is unknown here, max_completion_tokens is known", ["model", "max_tokens"])
    'max_tokens'
    >>> named_parameter({"detail": "log probabilities are not offered"}, ["temperature", "top_logprobs", "logprobs"])
    'logprobs'
    >>> named_parameter("maximum context length is 8192 tokens; reduce max_tokens", ["max_tokens"])
    """
    names = list(sent)
    refusal = body_or_message if isinstance(body_or_message, Refusal) else refusal_of(body_or_message)
    for place in refusal.places:
        if place in names:
            return place
    if ABOUT_LENGTH.search(refusal.words):
        return None
    found = ((match.start(), name) for name in names if (match := _spelt(name).search(refusal.words)))
    return min(found, default=(0, None))[1]


def _spelt(name: str) -> re.Pattern[str]:
    """How refusals spell a parameter; one of a single letter only where it is set apart by quotes, a colon or an equals sign."""
    pattern = "[ _-]?".join(map(re.escape, name.split("_")))
    pattern = re.sub("logprobs$", r"log[ _-]?prob(?:s|abilit(?:y|ies))", pattern)
    if len(name) == 1:
        return re.compile(rf"""['"`]{pattern}['"`]|(?<![\w.]){pattern}\s*[=:]|parameter {pattern}\b""")
    return re.compile(rf"(?<![A-Za-z0-9_]){pattern}(?![A-Za-z0-9_])", re.IGNORECASE)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by the headers `retry-after-ms` and `Retry-After` (seconds or a date), at most ten minutes; None: neither says."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if not text:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
            except (TypeError, ValueError, OverflowError):
                continue
        if seconds == seconds:
            return min(max(seconds, 0.0), MAX_RETRY_AFTER)
    return None


def backoff(tries: int, first: float = 0.5, longest: float = MAX_BACKOFF) -> float:
    """Seconds to wait before the next try after so many that failed: they double from `first` up to `longest`.

    >>> [backoff(tries) for tries in (0, 1, 2, 9)]
    [0.5, 1.0, 2.0, 60.0]
    """
    return min(longest, first * 2.0 ** min(tries, 30))


def failure_of(error: Exception, secrets: Sequence[str] = ()) -> Failure:
    """The failure behind an exception of the openai client or of its transport; errors of our own are raised again."""
    import httpx2
    import openai

    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Failure("transient", "timeout", "no whole reply within the time limit (--timeout)")
    if isinstance(error, openai.APIResponseValidationError):
        return Failure("transient", "invalid_json", scrub(str(error), *secrets)[:MOST_WORDS])
    if isinstance(error, openai.APIStatusError):
        wait = retry_after(error.response.headers)
        return failure_of_status(int(error.status_code), refusal_of(error.body or error.message), wait, secrets=secrets)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
    if not isinstance(cause, httpx2.HTTPError | openai.APIConnectionError):
        raise error
    words = scrub(str(cause) or type(cause).__name__, *secrets)[:MOST_WORDS]
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        if any(fault in words for fault in OF_TLS):
            return Failure("run", "tls", f"no safe connection: {words}")
        return Failure("unreachable", "unreachable", words or type(cause).__name__)
    if isinstance(cause, httpx2.ProxyError) and words.startswith(("401", "403", "407")):
        return Failure("run", "proxy", f"the proxy that the environment names lets nothing through: {words}")
    if isinstance(cause, httpx2.TimeoutException):
        return Failure("transient", "timeout", "no whole reply within the time limit (--timeout)")
    return Failure("transient", "connection_lost", words)


def failure_of_status(
    status: int, refusal: Refusal, wait: float | None = None, *, sent: Iterable[str] = (), secrets: Sequence[str] = ()
) -> Failure:
    """The failure behind an HTTP status (0: none came) and what the body said; wait: what the endpoint asked for.

    sent: names of the parameters that were sent; a refusal of one is no word about the key, whatever its status.
    """
    words = scrub(refusal.message, *secrets)[:MOST_WORDS]
    message = (f"{words} (status {status})" if words else f"status {status}, without a word") if status else words
    named = next(((code, OF_THE_RUN[code]) for code in refusal.codes if code in OF_THE_RUN), None)
    fatal = named or OF_THE_RUN_BY_STATUS.get(status)
    if fatal and not named and status in (403, 404) and named_parameter(refusal, PARAMETERS & set(sent)):
        return Failure("request", "unsupported_parameter", message)
    if fatal:
        return Failure("run", fatal[0], f"{fatal[1]}: {message}")
    if status == 429:
        return Failure("rate_limit", "rate_limit", message, wait)
    if status in (0, 408, 409, 425) or status >= 500:
        return Failure("transient", f"status_{status}" if status else "error_in_reply", message, wait)
    if "content_filter" in refusal.codes or "content management policy" in refusal.words:
        return Failure("request", "content_filter", message)
    return Failure("request", refusal.code if refusal.code.isidentifier() else f"status_{status}", message)
