"""Judges made of a function from a request's body to a reply, for `raw_endpoint`: models that think, that doubt, that refuse."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raw_endpoint import Came, RawEndpoint

__all__ = ["GRADE", "GRADE_TOKEN", "answering", "bodies", "chat", "refusal", "token"]

Reply = tuple[int, Any]
"""Status and JSON."""


def token(text: str, **probabilities: float) -> dict[str, Any]:
    """A token of a reply; probabilities: of what could have stood in its place (itself alone where none are given)."""
    tops = [(one, math.log(p)) for one, p in (probabilities or {text: 1.0}).items()]
    return {"token": text, "logprob": tops[0][1], "top_logprobs": [{"token": one, "logprob": p} for one, p in tops]}


GRADE_TOKEN = token("C", C=0.5, B=0.4, E=0.08)
"""A grade between "better" and "about the same", with a doubt: GRADE is what it stands for, by hand."""
GRADE = (1.22 / 0.98, math.sqrt((0.5 * 1 + 0.4 * 4 + 0.08 * 1) / 0.98 - (1.22 / 0.98) ** 2), [0, 0.4, 0.5, 0, 0.08, 0, 0])


def chat(
    body: Mapping[str, Any], content: Any, tokens: Sequence[Mapping[str, Any]] | None = None, finish: str = "stop", **message: Any
) -> Reply:
    """A chat completion. tokens: given where log-probabilities are asked for; message: further keys of it."""
    logprobs = {"content": list(tokens)} if tokens is not None and body.get("logprobs") else None
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish, "logprobs": logprobs}
    choices = [{"index": i, **choice} for i in range(body.get("n") or 1)]
    return 200, {
        "object": "chat.completion",
        "model": body["model"],
        "choices": choices,
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }


def refusal(status: int, words: str, key: str = "error") -> Reply:
    """A refusal in OpenAI's form, or {"detail": words}."""
    return status, {"error": {"message": words}} if key == "error" else {key: words}


def answering(answer: Callable[[dict[str, Any]], Reply]) -> Any:
    """For `raw_endpoint`: answers by a function of the request's body."""

    def to(came: Came) -> tuple[int, Mapping[str, str], bytes]:
        status, value = answer(came.body)
        return status, {}, json.dumps(value).encode()

    return to


def bodies(endpoint: RawEndpoint) -> list[dict[str, Any]]:
    """Of the requests that came, in order."""
    return [one.body for one in endpoint.came]
