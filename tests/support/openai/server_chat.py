"""One chat completion: what the endpoint accepts, and the simulated judge's verdict as tokens with log-probabilities."""

import math
import re
from collections.abc import Mapping
from typing import Any

from server_faults import chance
from server_http import ApiError
from server_judge import THOUGHT, Grades, Qualities, judge, prompt_of, script
from server_plan import Capabilities, JudgeModel

__all__ = ["complete", "estimated_tokens"]

JUNK = ("The", "I", " ", "**")
STYLES = {"plain": {"{}": 1.0}, "space": {" {}": 0.7, "{}": 0.2, "lower": 0.1}}
"""How a grade is spelt: pattern → share of the grade's probability; the first is the one that replies use."""

LEAST = -9999.0
CERTAIN = -0.001
PIECES = re.compile(r"\s?\S+|\s")

Token = tuple[str, float, list[tuple[str, float]]]
"""A token, its log-probability, and the most likely ones in its place."""


def complete(
    body: Mapping[str, Any],
    name: str,
    model: JudgeModel,
    qualities: Qualities,
    digest: str,
    created: int,
    mass: float | None = None,
) -> dict[str, Any]:
    """The reply to a chat request, as the API's object. mass: replaces the model's. Raises ApiError for what is refused."""
    capabilities = model.capabilities
    limit = check(body, capabilities)
    prompt = prompt_of(body)
    schema = _schema(body, capabilities)
    try:
        steps = script(judge(prompt, name, model, qualities), schema)
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ApiError(400, "Invalid schema for response_format.", code="invalid_schema", param="response_format") from None
    fenced = _wants_schema(body) and schema is None
    count = body.get("n") or 1 if capabilities.n == "honoured" else 1
    asked = capabilities.logprobs if body.get("logprobs") else "off"
    choices, written = [], 0
    for index in range(count):
        tokens = _realise(steps, model, mass or model.mass, _temperature(body), (digest, index))
        if fenced:
            tokens = [*_literal("Here is what you asked for:\n```json\n"), *tokens, *_literal("\n```")]
        if model.thinking:
            tokens = [*_literal(THOUGHT), *tokens]
        cut = limit is not None and (len(tokens) > limit or (len(tokens) == limit and capabilities.at_limit == "length"))
        tokens = tokens[:limit]
        written += len(tokens)
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": "".join(token[0] for token in tokens), "refusal": None},
            "finish_reason": "length" if cut else "stop",
        }
        if asked != "empty":
            choice["logprobs"] = _logprobs(tokens, body.get("top_logprobs") or 0, asked)
        choices.append(choice)
    read = estimated_tokens(prompt)
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {
        "id": f"chatcmpl-{digest[:24]}",
        "object": "chat.completion",
        "created": created,
        "model": name,
        "choices": choices,
        "usage": usage if capabilities.usage == "present" else None,
    }


def estimated_tokens(text: str) -> int:
    """A quarter of the characters, at least 1."""
    return max(1, len(text) // 4)


def check(body: Mapping[str, Any], capabilities: Capabilities) -> int | None:
    """The limit on tokens of a request that is in order, None for none. ApiError 400 otherwise."""
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ApiError(400, "Missing required parameter: 'messages'.", code="missing_required_parameter", param="messages")
    if body.get("stream"):
        raise _unsupported("stream", "Streaming is not offered here.")
    if body.get("max_tokens") is not None and capabilities.max_tokens == "400":
        raise _unsupported("max_tokens", "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")  # fmt: skip  # noqa: E501
    if capabilities.temperature == "400" and body.get("temperature", 1) != 1:
        message = (
            "Unsupported value: 'temperature' does not support this value with this model. Only the default (1) value is supported."
        )
        raise ApiError(400, message, code="unsupported_value", param="temperature")
    if body.get("logprobs") and capabilities.logprobs == "400":
        raise _unsupported("logprobs", "Unsupported parameter: 'logprobs' is not supported with this model.")
    if (body.get("n") or 1) != 1 and capabilities.n == "400":
        raise _unsupported("n", "Unsupported parameter: 'n' is not supported with this model.")
    top = body.get("top_logprobs")
    if top is not None and not body.get("logprobs"):
        raise ApiError(400, "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    _within("top_logprobs", top, 0, 20, int)
    _within("n", body.get("n"), 1, 128, int)
    _within("temperature", body.get("temperature"), 0, 2, int | float)
    limits = [body[key] for key in ("max_tokens", "max_completion_tokens") if body.get(key) is not None]
    if len(limits) == 2:
        raise ApiError(400, "Setting both 'max_tokens' and 'max_completion_tokens' is not supported.", param="max_tokens")
    for value in limits:
        _within("max_tokens", value, 1, math.inf, int)
    return limits[0] if limits else None


def _unsupported(param: str, message: str) -> ApiError:
    return ApiError(400, message, code="unsupported_parameter", param=param)


def _within(param: str, value: Any, low: float, high: float, kind: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        message = f"Invalid '{param}': {value!r}. Expected a number from {low} to {high}."
        raise ApiError(400, message, code="invalid_value", param=param)


def _temperature(body: Mapping[str, Any]) -> float:
    value = body.get("temperature")
    return 1.0 if value is None else float(value)


def _wants_schema(body: Mapping[str, Any]) -> bool:
    wanted = body.get("response_format")
    return isinstance(wanted, dict) and wanted.get("type") == "json_schema"


def _schema(body: Mapping[str, Any], capabilities: Capabilities) -> Mapping[str, Any] | None:
    """The schema that the reply must fit; None where none is asked for or it is ignored."""
    if not _wants_schema(body) or capabilities.json_schema == "ignored":
        return None
    if capabilities.json_schema == "500":
        raise ApiError(500, "The server had an error while processing your request.", type="server_error")
    if capabilities.json_schema == "400":
        message = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
        raise ApiError(400, message, param="response_format")
    try:
        return body["response_format"]["json_schema"]["schema"]
    except (KeyError, TypeError):
        message = "Missing required parameter: 'response_format.json_schema.schema'."
        raise ApiError(400, message, code="missing_required_parameter", param="response_format.json_schema") from None


def _realise(steps: list[Any], model: JudgeModel, mass: float, temperature: float, seed: tuple[object, ...]) -> list[Token]:
    """The tokens of one reply: literals as they are, grades the most likely (temperature 0) or drawn by the seed."""
    tokens: list[Token] = []
    spaced = model.token_style == "space"
    for place, step in enumerate(steps):
        if isinstance(step, str):
            tokens += [] if step == " " and spaced and place + 1 == len(steps) - 1 else _literal(step)
            continue
        label = _choose(step, temperature, (*seed, place))
        # A leading space would break a JSON string, so styles apply to bare verdicts.
        style = STYLES[model.token_style if place == len(steps) - 1 else "plain"]
        spellings = _spellings(step, style, mass)
        text = next(iter(style)).format(label)
        tokens.append((text, next(p for t, p in spellings if t == text), spellings))
    return tokens


def _literal(text: str) -> list[Token]:
    return [(piece, CERTAIN, [(piece, CERTAIN)]) for piece in PIECES.findall(text)]


def _choose(grades: Grades, temperature: float, seed: tuple[object, ...]) -> str:
    if temperature == 0:
        return max(grades, key=grades.__getitem__)
    top = max(grades.values())
    weights = [math.exp((value - top) / temperature) for value in grades.values()]
    left = chance("sample", *seed) * sum(weights)
    for label, weight in zip(grades, weights):
        left -= weight
        if left <= 0:
            return label
    return max(grades, key=grades.__getitem__)


def _spellings(grades: Grades, style: Mapping[str, float], mass: float) -> list[tuple[str, float]]:
    """Every token that could stand there with its log-probability, the most likely first."""
    shares = [(pattern, math.log(share * mass)) for pattern, share in style.items()]
    found = [
        (label.lower() if pattern == "lower" else pattern.format(label), max(value + share, LEAST))
        for label, value in grades.items()
        for pattern, share in shares
        if pattern != "lower" or label.lower() != label
    ]
    if mass < 1:
        found += [(junk, math.log((1 - mass) / len(JUNK))) for junk in JUNK]
    found.sort(key=lambda pair: -pair[1])
    return found


def _logprobs(tokens: list[Token], top: int, asked: str) -> dict[str, Any] | None:
    if asked == "off":
        return None
    content = [] if asked == "no_content" else [{**_entry(text, p), "top_logprobs": [_entry(*one) for one in others[:top]]} for text, p, others in tokens]  # fmt: skip  # noqa: E501
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}
