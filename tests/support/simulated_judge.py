"""The simulated judge: reads the candidates out of a prompt, knows how good each is, grades with bias and noise, replies as the API.

Candidates stand between lines `<NAME-NONCE>` and `</NAME-NONCE>`, NONCE being 8 or more hex digits and NAME `first` and `second`
(pairwise: letters A to G worth +3 to -3), `reply` (pointwise) or `reply-A`, `reply-B`, ... (listwise); the last two are graded on
the scale that the instruction names as "from X to Y" (1 to 5 where it names none). With q the latent quality of a text, in standard
deviations, and e the model's own error, normal and fixed by (model, texts in the order shown):

    pairwise   m = bent(scale·(q_first - q_second)) + bias + e          bent(d) = sign(d)·|d|^bend
    otherwise  m = middle of the scale + (its width / 4)·scale·q + e
    both       P(grade) ∝ exp(-(value - m)² / 2τ²)
"""

import gzip
import math
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from statistics import NormalDist, fmean, pstdev
from typing import Any, Literal

import orjson
from pydantic import BaseModel

GRADES = dict(zip("ABCDEFG", (3, 2, 1, 0, -1, -2, -3)))
"""The letters of a pairwise verdict and their values."""

Grades = dict[str, float]
"""A distribution over grades: label → natural logarithm of its probability; they sum to 1."""

Token = tuple[str, float, list[tuple[str, float]]]
"""A token, its log-probability, and the most likely ones in its place."""

REASONS = "Option A answers what was asked and says why. Option B leaves a detail out that a careful reader would miss."
"""Two sentences that name letters which are no verdicts."""

THOUGHT = "<think>\nOption G? No: that would be too much.\nVerdict: G\n</think>\n\n"
"""What a model that thinks aloud writes before its reply, with a verdict that it then drops."""

BLOCK = re.compile(r"<([a-z]+(?:-[A-Z])?)-([0-9a-fA-F]{8,})>\n(.*?)\n?</\1-\2>", re.DOTALL)
SCALE = re.compile(r"from (\d+) to (\d+)")
JUNK = ("The", "I", " ", "**")
"""Tokens that share the probability which the grades leave."""
LEAST, CERTAIN = -9999.0, -0.001
"""Log-probabilities: of what is next to impossible, and of a token that had to come."""

RANGES = {"top_logprobs": (0, 20), "n": (1, 128), "temperature": (0, 2), "max_tokens": (1, 1e6), "max_completion_tokens": (1, 1e6)}
UNSUPPORTED = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "logprobs": "Unsupported parameter: 'logprobs' is not supported with this model.",
    "temperature": "Unsupported value: 'temperature' does not support this value with this model. Only the default (1) is supported.",
}


class Refusal(Exception):
    """A request that the API refuses, in the words of its error body."""

    def __init__(self, status: int, message: str, code: str | None = None, *, type: str | None = None, param: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": type or "invalid_request_error", "param": param, "code": code}}


class Capabilities(BaseModel, extra="forbid"):
    """What the endpoint can do; "400": it refuses the parameter.

    logprobs: off answers `"logprobs": null`, empty leaves the key out, no_content answers {"content": []}. max_tokens "400": wants
    max_completion_tokens. temperature "400": only 1 is allowed. json_schema ignored: the object comes inside prose and a fence.
    """

    logprobs: Literal["on", "off", "empty", "no_content", "400"] = "on"
    n: Literal["honoured", "ignored"] = "honoured"
    max_tokens: Literal["accepted", "400"] = "accepted"
    temperature: Literal["accepted", "400"] = "accepted"
    json_schema: Literal["honoured", "ignored", "500"] = "honoured"


class JudgeModel(BaseModel, extra="forbid"):
    """How a simulated judge grades.

    bias: added to the margin of whatever is shown first, in grades. noise: standard deviation of the judge's own error, in
    grades. scale: grades per standard deviation of latent quality. bend: a power that bends its margins, monotone and odd. tau: width of
    its distribution over grades. mass: probability that the reply's token is a grade at all. thinking: replies begin with a thinking block
    that holds another verdict. writes: it grades nothing and writes a text, fixed by model, messages, temperature and seed.
    """

    bias: float = 0.0
    noise: float = 0.6
    scale: float = 1.0
    bend: float = 1.0
    tau: float = 0.7
    mass: float = 0.97
    thinking: bool = False
    writes: bool = False


def chance(*parts: object) -> float:
    """A number in (0, 1) that depends on the parts only."""
    number = int.from_bytes(blake2b(orjson.dumps(parts), digest_size=8).digest()) >> 12
    return (number + 0.5) / 2**52


def unit(*parts: object) -> float:
    """A standard normal number that depends on the parts only."""
    return NormalDist().inv_cdf(chance(*parts))


class Qualities:
    """Latent quality by text, in standard deviations: of a file of grades where it knows the text, else a fixed N(0, 1) number.

    grades: .jsonl.gz of objects with `completion` and `score`. Texts are compared stripped; the scores of a text that comes more
    than once are averaged, then all are brought to mean 0 and standard deviation 1. worth: words and what each is worth; with them a text's
    quality is computed from it (`quality`).
    """

    def __init__(self, grades: Path | None = None, worth: Mapping[str, float] | None = None) -> None:
        self.worth = worth
        scores: dict[str, list[float]] = {}
        for line in gzip.decompress(grades.read_bytes()).splitlines() if grades else ():
            row = orjson.loads(line)
            scores.setdefault(row["completion"].strip(), []).append(float(row["score"]))
        means = {text: fmean(values) for text, values in scores.items()} or {"": 0.0}
        middle, spread = fmean(means.values()), pstdev(means.values()) or 1.0
        self.known = {text: (value - middle) / spread for text, value in means.items() if scores}

    def of(self, text: str) -> float:
        """The quality of one text."""
        text = text.strip()
        if self.worth:
            return quality(text, self.worth)
        if text not in self.known:
            self.known[text] = unit("quality", blake2b(text.encode(), digest_size=8).hexdigest())
        return self.known[text]


def quality(text: str, worth: Mapping[str, float]) -> float:
    """Four times the mean worth of a text's words; words that are not listed are worth nothing.

    >>> quality("good bad other good.", {"good": 1, "bad": -1})
    1.0
    """
    words = re.findall(r"[a-z]+", text.lower())
    return 4 * fmean(worth.get(word, 0.0) for word in words) if words else 0.0


def prompt_of(body: Mapping[str, Any]) -> str:
    """All text of a chat request's messages, joined by newlines."""
    return "\n".join(message["content"] for message in body["messages"])


def estimated_tokens(text: str | bytes) -> int:
    """A quarter of the characters, at least 1."""
    return max(1, len(text) // 4)


def _verdict(prompt: str, name: str, model: JudgeModel, qualities: Qualities) -> dict[str, Grades]:
    """A distribution for each thing asked ("" for the one verdict, labels for a list); none: the prompt asks for no grade known here.

    A candidate's text cannot end its own block: the nonce is unknown to whoever wrote it, and what stands inside is not looked at.
    """
    found = {match[1]: match[3].strip() for match in BLOCK.finditer(prompt)}
    if "first" in found and "second" in found:
        first, second = found["first"], found["second"]
        apart = model.scale * (qualities.of(first) - qualities.of(second))
        margin = math.copysign(abs(apart) ** model.bend, apart) + model.bias
        return {"": _around(margin + model.noise * unit("pair", name, first, second), GRADES, model.tau)}
    bounds = SCALE.search(BLOCK.sub("", prompt))
    low, high = (int(bounds[1]), int(bounds[2])) if bounds else (1, 5)
    values, grades = {str(value): value for value in range(low, high + 1)}, {}
    for key in sorted(key for key in found if key.startswith("reply")):
        middle = (low + high) / 2 + (high - low) / 4 * model.scale * qualities.of(found[key])
        middle += model.noise * unit("single", name, key, found[key])
        grades[key.removeprefix("reply").removeprefix("-")] = _around(middle, values, model.tau)
    return grades


def _text(body: Mapping[str, Any]) -> list[str | Grades]:
    """A text of 3 to 40 words about the last message."""
    told = [body["model"], body["messages"], body.get("temperature"), body.get("seed")]
    words = int(3 + 38 * chance("length", *told))
    return [f"On {body['messages'][-1]['content']}", *(f" {unit('word', place, *told):.3f}" for place in range(words))]


def _around(centre: float, values: Mapping[str, float], tau: float) -> Grades:
    """Log-probabilities ∝ -(value - centre)²/2τ²."""
    raw = {label: -((value - centre) ** 2) / (2 * tau * tau) for label, value in values.items()}
    top = max(raw.values())
    total = top + math.log(sum(math.exp(value - top) for value in raw.values()))
    return {label: value - total for label, value in raw.items()}


def _script(grades: dict[str, Grades], reasons: str, schema: Mapping[str, Any] | None) -> list[str | Grades]:
    """The reply in order: literal texts, and distributions to choose from.

    reasons: what the prompt asks to be written before the grade, "" where it asks for the grade alone. schema: of an object that the
    reply must fit; grades go where a label's name, an enumeration or a number asks for them. A list of grades is a JSON object without
    one too.
    """
    if schema is None and not grades:
        return ["I was given nothing to compare."]
    if schema is None and list(grades) == [""]:
        brackets = ["[[", grades[""], "]]"] if reasons == "Grade: [[" else [grades[""]]
        return [REASONS, f"\n{reasons.partition(':')[0]}:", " ", *brackets] if reasons else [grades[""]]
    steps: list[str | Grades] = ["{"]
    for name, part in (schema["properties"] if schema else {label: {"type": "integer"} for label in grades}).items():
        own = grades.get(name) or next(iter(grades.values()), {})
        steps += [', "' if len(steps) > 1 else '"', name, '": ']
        if part["type"] == "integer":
            steps.append({label: value for label, value in own.items() if label.isdigit()} or "1")
        else:
            offered = {label: value for label, value in own.items() if label in part.get("enum", ())}
            steps += ['"', offered or "Both were read with care.", '"']
    return [*steps, "}"]


def complete(
    body: Mapping[str, Any], model: JudgeModel, capabilities: Capabilities, qualities: Qualities, digest: str
) -> dict[str, Any]:
    """The reply to a chat request, as the API's object. digest: of the request, samples depend on it. Raises Refusal."""
    limit = _checked(body, capabilities)
    prompt = prompt_of(body)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    fenced = schema is not None and capabilities.json_schema == "ignored"
    said = BLOCK.sub("", prompt)
    reasons = next((words for words in ("Verdict:", "Grade: [[") if words in said), "")
    steps = _script(_verdict(prompt, body["model"], model, qualities), reasons, None if fenced else schema)
    if model.writes:
        steps = _text(body)
    if fenced:
        steps = ["Here is what you asked for:\n```json\n", *steps, "\n```"]
    if model.thinking:
        steps = [THOUGHT, *steps]
    shown = capabilities.logprobs if body.get("logprobs") else "off"
    choices, written = [], 0
    for index in range(body.get("n", 1) if capabilities.n == "honoured" else 1):
        tokens = _realise(steps, model.mass, body.get("temperature", 1.0), digest, index)
        # The end-of-text token would be one more: a reply that is exactly as long as the limit was cut.
        finish = "length" if limit is not None and len(tokens) >= limit else "stop"
        tokens = tokens[:limit]
        written += len(tokens)
        message = {"role": "assistant", "content": "".join(token[0] for token in tokens), "refusal": None}
        choices.append({"index": index, "message": message, "finish_reason": finish, "logprobs": None})
        if shown == "empty":
            del choices[-1]["logprobs"]
        elif shown != "off":
            top = body.get("top_logprobs", 0)
            content = [{**_entry(text, p), "top_logprobs": [_entry(*one) for one in offers[:top]]} for text, p, offers in tokens]
            choices[-1]["logprobs"] = {"content": content if shown == "on" else [], "refusal": None}
    read = estimated_tokens(prompt)
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    reply = {"id": f"chatcmpl-{digest[:24]}", "object": "chat.completion", "created": 0, "model": body["model"]}
    return {**reply, "choices": choices, "usage": usage}


def _checked(body: Mapping[str, Any], capabilities: Capabilities) -> int | None:
    """The limit on tokens of a request that is in order, None for none. Refusal otherwise."""
    used = {"max_tokens": "max_tokens" in body, "logprobs": body.get("logprobs"), "temperature": body.get("temperature", 1) != 1}
    for param, message in UNSUPPORTED.items():
        if used[param] and getattr(capabilities, param) == "400":
            raise Refusal(400, message, "unsupported_parameter", param=param)
    if body.get("response_format") and capabilities.json_schema == "500":
        raise Refusal(500, "The server had an error while processing your request.", type="server_error")
    if "top_logprobs" in body and not body.get("logprobs"):
        raise Refusal(400, "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise Refusal(400, "Setting both 'max_tokens' and 'max_completion_tokens' is not supported.", param="max_tokens")
    for param, (low, high) in RANGES.items():
        if param in body and not low <= body[param] <= high:
            message = f"Invalid '{param}': {body[param]!r}. Expected a number from {low} to {high}."
            raise Refusal(400, message, "invalid_value", param=param)
    return body.get("max_tokens") or body.get("max_completion_tokens")


def _realise(steps: list[str | Grades], mass: float, temperature: float, *seed: object) -> list[Token]:
    """The tokens of one reply: literals as they are, grades the most likely (temperature 0) or drawn by the seed."""
    tokens: list[Token] = []
    for place, step in enumerate(steps):
        if isinstance(step, str):
            tokens += [(piece, CERTAIN, [(piece, CERTAIN)]) for piece in re.findall(r"\s?\S+|\s", step)]
            continue
        offers = {label: max(value + math.log(mass), LEAST) for label, value in step.items()}
        label = likeliest = max(step, key=step.__getitem__)
        if temperature:
            weights = [math.exp((value - step[likeliest]) / temperature) for value in step.values()]
            left = chance("sample", *seed, place) * sum(weights)
            label = next((one for one, weight in zip(step, weights) if (left := left - weight) <= 0), likeliest)
        own = offers[label]
        if mass < 1:
            offers |= {junk: math.log((1 - mass) / len(JUNK)) for junk in JUNK}
        tokens.append((label, own, sorted(offers.items(), key=lambda offer: -offer[1])))
    return tokens


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
