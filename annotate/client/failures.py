"""What can go wrong with a request, classified once for the whole engine: `failure_of` reads the openai client's errors.

rate_limit    429: wait as told, ask again                    transient   5xx, reset, time-out, broken JSON: ask again
unreachable   connection refused: wait for the endpoint       request     this request can't be answered: leave it, go on
run           wrong key, unknown model, no credit: stop all
"""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from mmpo.annotate.client.request import Failure

__all__ = ["failure_of", "retry_after", "scrub", "without_key"]

LONGEST_WAIT = 600.0
OF_THE_RUN = {
    "insufficient_quota": "the account has no credit left",
    "billing_hard_limit_reached": "the account's spending limit is reached",
    "invalid_api_key": "the API key is not accepted",
    "account_deactivated": "the account is deactivated",
    "model_not_found": "the endpoint has no such model",
}
LEAST_SECRET = 16
KEY_SHAPED = re.compile(r"\b(?:sk|pk|gsk|xai|hf|key)[-_][A-Za-z0-9_*-]{6,}")


def scrub(text: str, secret: str | None) -> str:
    """The text without the key, and without what looks like one (endpoints echo them).

    >>> scrub("Incorrect API key provided: sk-abc***xyz1.", None)
    'Incorrect API key provided: [key].'
    """
    if secret and len(secret) > 3:
        text = text.replace(secret, "[key]")
    return KEY_SHAPED.sub("[key]", text)


def without_key(text: str, secret: str | None) -> str:
    """A judge's words without the key itself. Nothing else is touched: a verdict may lie in "key-features"."""
    return text.replace(secret, "[key]") if secret and len(secret) >= LEAST_SECRET else text


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by the headers `retry-after-ms` and `Retry-After` (seconds or a date), at most ten minutes; None: not said."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if not text:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
            except (TypeError, ValueError):
                continue
        if seconds == seconds:
            return min(max(seconds, 0.0), LONGEST_WAIT)
    return None


def failure_of(error: Exception, secret: str | None = None) -> Failure:
    """The failure behind an exception of the openai client; errors of our own are raised again."""
    import openai

    message = scrub(str(error), secret)[:500]
    if isinstance(error, openai.APITimeoutError):
        return Failure("transient", "timeout", "no reply within the time limit")
    if isinstance(error, openai.APIConnectionError):
        refused = "ConnectError" in type(error.__cause__).__name__ or "ConnectTimeout" in type(error.__cause__).__name__
        cause = scrub(str(error.__cause__ or error), secret)[:300]
        return Failure("unreachable" if refused else "transient", "unreachable" if refused else "connection_lost", cause)
    if isinstance(error, openai.APIResponseValidationError):
        return Failure("transient", "invalid_json", message)
    if not isinstance(error, openai.APIStatusError):
        raise error
    return _of_status(error, message)


def _of_status(error: Any, message: str) -> Failure:
    status, code = int(error.status_code), str(error.code or "")
    wait = retry_after(error.response.headers)
    told = next((name for name in OF_THE_RUN if name in (code, str(error.type or ""))), "")
    if told:
        return Failure("run", told, f"{OF_THE_RUN[told]}: {message}")
    if status in (401, 403):
        return Failure("run", "invalid_api_key" if status == 401 else "forbidden", message)
    if status == 404:
        return Failure("run", "not_found", f"the endpoint has no such model or address: {message}")
    if status == 402:
        return Failure("run", "insufficient_quota", message)
    if status == 429:
        return Failure("rate_limit", "rate_limit", message, wait)
    if status in (408, 409, 425) or status >= 500:
        return Failure("transient", f"status_{status}", message, wait)
    if "content_filter" in (code, str(error.type or "")) or "content management policy" in message:
        return Failure("request", "content_filter", message)
    return Failure("request", code if code and code.isidentifier() else f"status_{status}", message)
