"""The simulated judge: reads the candidates out of a prompt, knows how good each is, and grades with bias and noise.

Candidates stand between lines `<NAME-NONCE>` and `</NAME-NONCE>`, NONCE being 8 or more hex digits and NAME `first` and `second`
(pairwise: letters A to G worth +3 to -3), `reply` (pointwise) or `reply-A`, `reply-B`, ... (listwise); the last two are graded on
the scale that the instruction names as "from X to Y" (1 to 5 where it names none). With q the latent quality of a text, in standard
deviations, and e the model's own error, normal and fixed by (model, texts in the order shown):

    pairwise   m = scale·(q_first - q_second) + bias + e
    otherwise  x = middle of the scale + (its width / 4)·scale·q + leniency + e
    both       P(grade) ∝ exp(-(value - m)² / 2τ²)
"""

import gzip
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import NormalDist, fmean, pstdev
from typing import Any

import orjson
from server_faults import chance
from server_plan import JudgeModel

__all__ = ["GRADES", "REASONS", "THOUGHT", "Grades", "Qualities", "Verdict", "judge", "prompt_of", "script", "unit"]

GRADES = dict(zip("ABCDEFG", (3, 2, 1, 0, -1, -2, -3)))
"""The letters of a pairwise verdict and their values."""

Grades = dict[str, float]
"""A distribution over grades: label → natural logarithm of its probability; they sum to 1."""

BLOCK = re.compile(r"<([a-z]+(?:-[A-Z])?)-([0-9a-fA-F]{8,})>\n(.*?)\n?</\1-\2>", re.DOTALL)
SCALE = re.compile(r"from (\d+) to (\d+)")
NORMAL = NormalDist()


def unit(*parts: object) -> float:
    """A standard normal number that depends on the parts only."""
    return NORMAL.inv_cdf(chance(*parts))


class Qualities:
    """Latent quality by text, in standard deviations: of a file of grades where it knows the text, else a fixed N(0, 1) number.

    grades: JSON (a list), or JSON lines, plain or .gz, of objects with `completion` and `score`. Texts are compared stripped;
    the scores of a text that comes more than once are averaged, then all are brought to mean 0 and standard deviation 1.
    """

    def __init__(self, grades: Path | None = None) -> None:
        self.known: dict[str, float] = {}
        self.guessed: dict[bytes, float] = {}
        if grades is not None:
            scores: dict[str, list[float]] = {}
            for row in _rows(grades):
                scores.setdefault(row["completion"].strip(), []).append(float(row["score"]))
            means = {text: fmean(values) for text, values in scores.items()}
            middle, spread = fmean(means.values()), pstdev(means.values()) or 1.0
            self.known = {text: (value - middle) / spread for text, value in means.items()}

    def of(self, text: str) -> float:
        """The quality of one text."""
        known = self.known.get(text.strip())
        if known is not None:
            return known
        key = blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if key not in self.guessed:
            self.guessed[key] = unit("quality", key.hex())
        return self.guessed[key]


def _rows(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if data.lstrip()[:1] == b"[":
        return orjson.loads(data)
    return [orjson.loads(line) for line in data.splitlines() if line.strip()]


def prompt_of(body: Mapping[str, Any]) -> str:
    """All text of a chat request's messages, parts included, joined by newlines."""
    texts: list[str] = []
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(texts)


@dataclass(frozen=True)
class Verdict:
    """What the judge thinks: a distribution for each thing asked ("" for the one verdict, labels for a list), and whether
    reasons are wanted before it. No distribution: the prompt asks for no grade that is known here."""

    grades: dict[str, Grades]
    reasons: bool


def judge(prompt: str, name: str, model: JudgeModel, qualities: Qualities) -> Verdict:
    """The verdict of the model of that name on a prompt. A candidate's text cannot end its own block: the nonce is unknown
    to whoever wrote it, and what stands inside a block is not looked at."""
    found = {match[1]: match[3].strip() for match in BLOCK.finditer(prompt)}
    instruction = BLOCK.sub("", prompt)
    reasons = "Verdict:" in instruction
    if "first" in found and "second" in found:
        first, second = found["first"], found["second"]
        error = model.noise * unit("pair", name, first, second) if model.noise else 0.0
        margin = model.scale * (qualities.of(first) - qualities.of(second)) + model.bias + error
        return Verdict({"": _around(margin, GRADES, model.tau)}, reasons)
    bounds = SCALE.search(instruction)
    low, high = (int(bounds[1]), int(bounds[2])) if bounds else (1, 5)
    values = {str(value): value for value in range(low, high + 1)}
    labels = sorted(key for key in found if key.startswith("reply-"))
    grades = {}
    for key in labels or [key for key in ("reply",) if key in found]:
        text = found[key]
        error = model.noise * unit("single", name, key, text) if model.noise else 0.0
        place = (low + high) / 2 + (high - low) / 4 * model.scale * qualities.of(text) + model.leniency + error
        grades[key.removeprefix("reply").removeprefix("-")] = _around(place, values, model.tau)
    return Verdict(grades, reasons)


def _around(centre: float, values: Mapping[str, float], tau: float) -> Grades:
    """Log-probabilities ∝ -(value - centre)²/2τ²."""
    raw = {label: -((value - centre) ** 2) / (2 * tau * tau) for label, value in values.items()}
    top = max(raw.values())
    total = top + math.log(sum(math.exp(value - top) for value in raw.values()))
    return {label: value - total for label, value in raw.items()}


REASONS = "Option A answers what was asked and says why. Option B leaves a detail out that a careful reader would miss."
"""Two sentences that name letters which are no verdicts."""

THOUGHT = "<think>\nOption G? No: that would be too much.\nVerdict: G\n</think>\n\n"
"""What a model that thinks aloud writes before its reply, with a verdict that it then drops."""

Step = str | Grades


def script(verdict: Verdict, schema: Mapping[str, Any] | None) -> list[Step]:
    """The reply as a list of literal texts and distributions to choose from, in order.

    schema: a JSON Schema; the reply is then an object that fits. Lists of grades are a JSON object without one too.
    """
    if schema is None and len(verdict.grades) == 1 and "" in verdict.grades:
        return [REASONS, "\nVerdict:", " ", verdict.grades[""]] if verdict.reasons else [verdict.grades[""]]
    if schema is None and not verdict.grades:
        return ["I was given nothing to compare."]
    if schema is None:
        schema = {"type": "object", "properties": {label: {"type": "integer"} for label in verdict.grades}}
    steps: list[Step] = []
    _write(schema, schema, "", verdict, steps.append)
    return steps


def _write(schema: Mapping[str, Any], root: Mapping[str, Any], key: str, verdict: Verdict, put: Callable[[Step], None]) -> None:
    """One value that fits the schema; grades go where a label's name, an enumeration or a number asks for them."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    kind = schema.get("type", "string")
    grades = verdict.grades.get(key) or next(iter(verdict.grades.values()), {})
    if kind == "object":
        put("{")
        for number, (name, part) in enumerate(schema.get("properties", {}).items()):
            put(', "' if number else '"')
            put(name)
            put('": ')
            _write(part, root, name, verdict, put)
        put("}")
    elif kind == "array":
        put("[")
        _write(schema.get("items", {}), root, key, verdict, put)
        put("]")
    elif kind in ("integer", "number"):
        put({label: value for label, value in grades.items() if label.isdigit()} or "1")
    elif kind == "boolean":
        put("true")
    else:
        offered = {label: value for label, value in grades.items() if label in schema.get("enum", ())}
        put('"')
        put(offered or str(next(iter(schema.get("enum", ())), "Both were read with care.")))
        put('"')
