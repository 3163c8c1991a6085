"""How a file of grades is to be read, guessed from the names of its columns and from what stands in them, as options of a build."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources.base import columns_of
from mmpo.pipeline.storage.inputs import resolve_inputs
from mmpo.pipeline.storage.rows import plan, rows

LOOKED_AT = 2000
"""Rows whose cells are looked at."""
MOST_GAPS, MOST_WORDS = 0.5, 8
"""Share of a column's cells that may be no grade, and how many different texts may stand for none or for a winner."""
_REPLY = "response|answer|completion|output|reply|text|candidate|generation|assistant|model_response|model_output|model_answer"
_SCORE = "score|rating|grade|stars|mark|points|note|bewertung"
NAMES = {
    "prompt": "prompt|question|instruction|query|input|user|user_prompt|task|frage|request|conversation|messages|chat|context",
    "completion": f"{_REPLY}|antwort|response_text",
    "completions": "completions|responses|answers|outputs|candidates|generations|replies",
    "scores": "scores|ratings|grades",
    "score": f"{_SCORE}|overall|overall_score|overall_rating|quality|label|value",
    "rater": "who|by|rater|annotator|annotator_id|rater_id|grader|judge|worker|worker_id|reviewer"
    "|labeler|labeller|evaluator|user_id|bewerter",
    "model": "model|model_name|system_name|generator|source_model",
    "chosen": f"chosen|preferred|accepted|better|(?:chosen|preferred|better)_(?:{_REPLY})",
    "rejected": f"rejected|dispreferred|worse|(?:rejected|dispreferred|worse|other)_(?:{_REPLY})",
    "score_chosen": f"(?:{_SCORE})_chosen|chosen_(?:{_SCORE})",
    "score_rejected": f"(?:{_SCORE})_rejected|rejected_(?:{_SCORE})",
    "margin": "margin|quality_margin|strength|preference_strength|delta",
    "first": rf"first|left|a|(?:{_REPLY})_?(?:a|1|left|first)|(?:first|left)_(?:{_REPLY})",
    "second": rf"second|right|b|(?:{_REPLY})_?(?:b|2|right|second)|(?:second|right)_(?:{_REPLY})",
    "score_first": rf"(?:{_SCORE})_?(?:a|1|left|first)|(?:first|left)_(?:{_SCORE})",
    "score_second": rf"(?:{_SCORE})_?(?:b|2|right|second)|(?:second|right)_(?:{_SCORE})",
    "first_model": "model_?(?:a|1|left|first)|(?:first|left)_model",
    "second_model": "model_?(?:b|2|right|second)|(?:second|right)_model",
    "gap": "gap|winner|preference|preferred|vote|choice|verdict|overall_preference|comparison|better",
}  # fmt: skip
"""Field → what its column is often called, in small letters with _ between words."""
SIDES = {
    1.0: "a|1|left|first|model_a|response_a|answer_a|a_better|a_wins|a_is_better|first_is_better|>",
    -1.0: "b|2|right|second|model_b|response_b|answer_b|b_better|b_wins|b_is_better|second_is_better|<",
    0.0: "tie|tied|draw|equal|same|both|neither|none|tie_bothbad|both_bad|both_good|about_the_same|no_preference|c|0|=",
}
"""What a winner is worth as a gap → the words for it."""
ASPECTS = re.compile(
    "helpful|honest|truth|correct|coheren|complex|verbos|accura|clar|fluen|relevan|safe|harm|style|factual|concis|complete|depth|follow"
)
NO_GRADE = re.compile(
    "(^|_)(id|idx|index|row|nr|no|number|date|time|timestamp|length|len|tokens|chars|seed|turn|count|seconds)($|_)"
)
SCALES, GAPS = (1, 3, 4, 5, 7, 10, 100), (1, 2, 3, 4, 5, 6, 9, 10, 100)
"""Where scales of grades end, and those of gaps."""
Rows = list[Mapping[str, Any]]


@dataclass
class Guess:
    """Options of a build, by name; and why, for those where it may be wrong: option → a sentence."""

    options: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)


def guesses(inputs: Sequence[str], fitting: Callable[[Collection[str]], list[str]]) -> Iterator[Guess]:
    """How a build might read these files, the likeliest first, by the first rows of the first of them.

    fitting: which formats a file's columns could be in. Raises UserError where they can't be read.
    """
    first: UserError | None = None
    for encoding in (None, "cp1252"):
        try:
            found, unreadable = _head(inputs, encoding)
        except UserError as error:
            if encoding:
                raise (first or error) from None
            first = error
            continue
        if encoding is None and unreadable > 0.01 * len(found):
            continue
        kind = _kind(inputs)
        named = [one for one in fitting(columns_of(found)) if one not in ("jsonl", "csv", "parquet")]
        for name in dict.fromkeys([*named, kind]):
            made = _options(name, found, list(columns_of(found))) if name in (kind, "trl") else Guess({"format": name})
            if others := [one for one in named if one != name]:
                made.why["format"] = f"the columns fit {', '.join(others)} as well"
            if encoding:
                made.options["encoding"], made.why["encoding"] = (
                    encoding,
                    "it is not UTF-8; name another one where letters look wrong",
                )
            yield made
        return


def _kind(inputs: Sequence[str]) -> str:
    return {"json": "jsonl", "arrow": "parquet"}.get(kind := resolve_inputs(inputs, "")[0].kind, kind)


def _head(inputs: Sequence[str], encoding: str | None) -> tuple[Rows, int]:
    """The first rows of the first file, and how many of them are no UTF-8."""
    files = resolve_inputs(inputs, "", encoding=encoding)
    bad: list[str] = []
    found: Rows = []
    for chunk in plan(files[:1])[:1]:
        found = [row for _, row in islice(rows(chunk, lambda _, reason, __: bad.append(reason)), LOOKED_AT)]
    return found, bad.count("invalid_utf8")


def _options(format: str, found: Rows, columns: list[str]) -> Guess:
    columns = [name for name in columns if "[]." not in name]
    text = format == "csv"
    by_name = _by_name(columns)
    numbers = [name for name in columns if name not in by_name.values() and _is_graded(name, found)]
    made = Guess({"format": format})
    fields = _layout(by_name, columns, numbers, found, made)
    own = {name: column for name, column in fields.items() if name != column}
    if own:
        made.options["columns"] = own
    graded = [part for name in ("score", "scores", "score_chosen", "score_rejected", "score_first", "score_second", "margin", "gap")
              for part in fields.get(name, "").split("+") if part]  # fmt: skip
    _cells(made, graded, found, text, gap="gap" in fields or "margin" in fields)
    return made


def _plain(name: str) -> str:
    return re.sub(r"[^\w<>=]+", "_", name.casefold()).strip("_")


def _by_name(columns: list[str]) -> dict[str, str]:
    """Field → the column that is called so, the first of several."""
    fields: dict[str, str] = {}
    for name, pattern in NAMES.items():
        exact = [column for column in columns if column == name]
        for column in exact or [one for one in columns if re.fullmatch(pattern, _plain(one))]:
            if column not in fields.values():
                fields[name] = column
                break
    return fields


def _layout(fields: dict[str, str], columns: list[str], numbers: list[str], found: Rows, made: Guess) -> dict[str, str]:
    """The fields of the one layout that the columns make."""
    take = lambda *names: {name: fields[name] for name in names if name in fields}  # noqa: E731
    if {"chosen", "rejected"} <= fields.keys():
        return take("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin", "rater")
    if {"first", "second"} <= fields.keys():
        if {"score_first", "score_second"} <= fields.keys():
            return take("prompt", "first", "second", "score_first", "score_second", "first_model", "second_model", "rater")
        return take("prompt", "first", "second", "gap", "first_model", "second_model", "rater")
    if "completions" in fields and (inside := _inside(fields["completions"], found)):
        return {**take("prompt"), **inside}
    if {"completions", "scores"} <= fields.keys():
        return take("prompt", "completions", "scores", "rater")
    texts = [name for name in columns if _is_prose(name, found) and name not in fields.values()]
    if "prompt" not in fields and texts:
        fields["prompt"] = min(texts, key=lambda name: len({str(row.get(name)) for row in found}))
        made.why["columns"] = "the prompt is the text that most rows share"
        texts.remove(fields["prompt"])
    if "completion" not in fields and texts:
        fields["completion"] = max(texts, key=lambda name: len({str(row.get(name)) for row in found}))
    if "score" not in fields and numbers:
        fields["score"] = "+".join(numbers)
        if len(numbers) > 1 and "rater" not in fields:
            aspects = all(ASPECTS.search(_plain(name)) for name in numbers)
            made.why["columns"] = (
                "each column of grades is read as a rater; if they are aspects of one rater's, name a single one"
                if aspects
                else "each column of grades is a rater"
            )
    return take("prompt", "completion", "score", "rater", "model")


def _others(winners: Mapping[str, float]) -> dict[str, float]:
    """The words that belong to those that were seen, and that later rows may hold: the other side's, and a tie."""
    first, second = (SIDES[side].split("|") for side in (1.0, -1.0))
    spelled = {word.casefold() for word in winners}
    found = {b: -1.0 for a, b in zip(first, second) if a in spelled} | {a: 1.0 for a, b in zip(first, second) if b in spelled}
    return {word: worth for word, worth in {**found, "tie": 0.0}.items() if word not in spelled}


def _inside(column: str, found: Rows) -> dict[str, str]:
    """The fields of candidates that are objects in one column's lists."""
    objects = [one for row in found if isinstance(row.get(column), list) for one in row[column] if isinstance(one, Mapping)]
    fields = _by_name(list(dict.fromkeys(name for one in objects for name in one)))
    if not {"completion", "score"} <= fields.keys():
        return {}
    return {name: f"{column}[].{fields[one]}" for name, one in (("completions", "completion"), ("scores", "score"))}


def _values(name: str, found: Rows) -> list[Any]:
    """The cells of a column that hold something; of lists what stands in them."""
    outer, inside, key = name.partition("[].")
    cells = [
        [one.get(key) for one in row.get(outer) or [] if isinstance(one, Mapping)] if inside else row.get(name) for row in found
    ]
    flat = [one for cell in cells for one in (cell if isinstance(cell, list) else [cell])]
    return [one.strip() if isinstance(one, str) else one for one in flat if one is not None and one == one and str(one).strip()]


def _number(value: Any) -> float | None:
    """A cell as a number, whatever its decimal mark; "4/5" is 4."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    part = re.fullmatch(r"([+−-]?\d*[.,]?\d+)\s*(?:/\s*\d+|%)?", str(value))
    return float(part[1].replace(",", ".").replace("−", "-")) if part else None


def _is_graded(name: str, found: Rows) -> bool:
    """Whether a column holds mostly numbers, few different ones, and is called neither an id nor a length."""
    values = _values(name, found)
    numbers = [one for value in values if (one := _number(value)) is not None]
    if NO_GRADE.search(_plain(name)) or not numbers or len(numbers) < (1 - MOST_GAPS) * len(values):
        return False
    return len(set(numbers)) < max(12, len(numbers) / 2)


def _is_prose(name: str, found: Rows) -> bool:
    values = _values(name, found)
    return bool(values) and sum(isinstance(one, str) and _number(one) is None and " " in one for one in values) > len(values) / 2


def _cells(made: Guess, columns: Iterable[str], found: Rows, text: bool, gap: bool) -> None:
    """How the cells of the columns with grades are read: decimal mark, what stands for none, words for a winner, the scale."""
    values = [value for name in columns for value in _values(name, found)]
    words = Counter(value for value in values if isinstance(value, str) and _number(value) is None)
    winners = {word: worth for word in words for worth, pattern in SIDES.items() if re.fullmatch(pattern, _plain(word))}
    if gap and words and len(winners) / len(words) > 0.5:
        made.options["gap_of"] = winners | _others(winners)
        made.why["gap_of"] = "a winner in words: 1 is the first one, -1 the second"
        words = Counter({word: count for word, count in words.items() if word not in winners})
    elif gap and {str(value) for value in values} == {"1", "2"}:
        made.options["gap_of"] = {"1": 1.0, "2": -1.0}
        made.why["gap_of"] = "read as which of the two is better"
    if words and len(words) <= MOST_WORDS and words.total() <= MOST_GAPS * len(values):
        made.options["na"] = sorted(words)
        made.why["na"] = f"stand for no grade in {words.total():,} of the {len(values):,} cells looked at"
    spelled = [value for value in values if isinstance(value, str) and _number(value) is not None]
    if any(re.fullmatch(r"[+-]?\d*,\d+(\s*/.*)?", value) for value in spelled):
        made.options["decimal"] = ","
    elif spelled and not text:
        made.options["decimal"] = "."
    numbers = [one for value in values if (one := _number(value)) is not None]
    if gap and numbers and "gap_of" not in made.options:
        made.why["format"] = (
            "above 0 the first reply is taken for the better one; a - before the column of the gap turns that round"
        )
    if numbers and "gap_of" not in made.options:
        ends = {float(part[1] or 100) for value in spelled if (part := re.fullmatch(r".*(?:/\s*(\d+)|%)", value))}
        low, high = min(numbers), max([*numbers, *ends])
        top = next((one for one in (GAPS if gap else SCALES) if max(high, -low if gap else 0) <= one), None)
        if top is not None and (gap or low >= 0):
            made.options["scale"] = [-top, top] if gap else [1 if low >= 1 and top > 1 else 0, top]
            made.why["scale"] = f"grades from {low:g} to {high:g} were seen; write the scale that was asked for"
