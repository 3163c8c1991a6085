"""The rules that single rows of the stored tables keep, as masks over rows: what reading relies on and what `validate` counts.

See docs/data-contract.md. Types and nulls hold for every table; the rest is FEEDBACK's, whose grades point at completions of their row.
"""

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from mmpo.pipeline.arrow import flat, offsets_of, parents
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import MESSAGE_COLUMNS, MESSAGE_KEYS, OPTIONAL_KEYS, TOOLS

KINDS = ("human", "ai", "reward_model")
"""Of raters."""
LARGEST = 1e150
"""The largest size of a grade: differences, their squares and sums of these are still finite."""
MOST_MASS = 1.01
"""What rounded probabilities may sum to."""
_NULLABLE = "score_chosen score_rejected margin_se chosen_model rejected_model model low high limit spread note probabilities extra"
NULLABLE = frozenset([*_NULLABLE.split(" "), *OPTIONAL_KEYS])
"""Columns and fields in which null is a value of its own: there is none, or it is not known."""


def misfits(given: pa.Schema, wanted: pa.Schema) -> list[str]:
    """The names of `wanted` that a schema has, but in a type that can't hold the same values."""
    return [field.name for field in wanted if field.name in given.names and not _fits(given.field(field.name).type, field.type)]


def check_names(given: pa.Schema, where: str | Path) -> None:
    """Raises UserError where two columns have one name: which is meant is not known."""
    twice = next((name for name in given.names if given.names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: two columns are called {twice!r}; rename one")


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type can stand in another: widths of offsets and numbers may differ, text is no number."""
    if given == wanted or kinds.is_null(given):  # that a whole column is null is a matter of its values
        return True
    if kinds.is_dictionary(given):
        return _fits(given.value_type, wanted)
    if kinds.is_list(wanted):
        lists = kinds.is_list(given) or kinds.is_large_list(given) or kinds.is_list_view(given) or kinds.is_fixed_size_list(given)
        return lists and _fits(given.value_type, wanted.value_type)
    if kinds.is_struct(wanted):
        names = {given.field(i).name for i in range(given.num_fields)} if kinds.is_struct(given) else set()
        own = {field.name: field.type for field in wanted.fields}
        missing = own.keys() - names - NULLABLE
        return bool(names) and not missing and all(_fits(given.field(name).type, own[name]) for name in names & own.keys())
    same: list[Callable[[pa.DataType], bool]] = [_is_text, kinds.is_integer, kinds.is_floating]
    return any(one(given) and one(wanted) for one in same) or (kinds.is_integer(given) and kinds.is_floating(wanted))


def _is_text(kind: pa.DataType) -> bool:
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


Fault = tuple[str, str, np.ndarray]
"""A rule's name, what is wrong in words, and which rows break it, shape (rows,)."""


def null_faults(column: pa.Array, name: str, nullable: Collection[str] = NULLABLE) -> Iterator[Fault]:
    """The rows of a column that have a null where a value is needed, at any depth: the words name the field, as in "no prompt.role"."""
    if column.null_count and name.rpartition(".")[2] not in nullable:
        yield "nulls", f"no {name}", np.asarray(column.is_null())
    if kinds.is_list(column.type) or kinds.is_large_list(column.type):
        for rule, words, below in null_faults(column.flatten(), name, nullable):
            mask = np.zeros(len(column), dtype=bool)
            mask[parents(offsets_of(column))[below]] = True
            yield rule, words, mask
    elif kinds.is_struct(column.type):
        for i in range(column.type.num_fields):
            yield from null_faults(column.field(i), f"{name}.{column.type.field(i).name}", nullable)


def feedback_faults(table: pa.Table | pa.RecordBatch) -> Iterator[Fault]:
    """What breaks a rule of FEEDBACK about grades. table: without nulls where values are needed."""
    completions = np.diff(offsets_of(flat(table["completions"])))
    yield from _grade_faults(flat(table["ratings"]), completions, ("completion",), "score")
    yield from _grade_faults(flat(table["comparisons"]), completions, ("first", "second"), "gap")


def key_faults(table: pa.Table | pa.RecordBatch) -> Iterator[Fault]:
    """What breaks a rule about what messages carry beside role and content, and about tools; nothing where there are no such fields."""
    if TOOLS in table.schema.names:
        yield "messages", "its tools are no JSON text of a list of objects", _ill_formed(flat(table[TOOLS]), are_tools)
    for name in [name for name in (*MESSAGE_COLUMNS, "completions") if name in table.schema.names]:
        column = flat(table[name])
        rows, messages = parents(offsets_of(column)), column.flatten()
        for key in [field.name for field in messages.type.fields if field.name in MESSAGE_KEYS]:
            mask = np.zeros(len(column), dtype=bool)
            mask[rows[_ill_formed(messages.field(key), are_calls if key == "tool_calls" else bool)]] = True
            words = "are no JSON text of a list of calls, each with its function's name" if key == "tool_calls" else "is empty text"
            yield "messages", f"{name}.{key} {words}", mask


def _ill_formed(texts: pa.Array, well: Callable[[str], bool]) -> np.ndarray:
    if texts.null_count == len(texts):
        return np.zeros(len(texts), dtype=bool)
    coded = texts if kinds.is_dictionary(texts.type) else texts.dictionary_encode()
    bad = np.array([text is not None and not well(text) for text in coded.dictionary.to_pylist()] + [False], dtype=bool)
    return bad[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


def are_calls(text: str) -> bool:
    """Whether a text is the JSON of a list of tool calls in OpenAI's layout."""
    calls = _parsed(text)
    functions = [isinstance(call, dict) and call.get("function") for call in calls] if isinstance(calls, list) else []
    return bool(functions) and all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in functions)


def are_tools(text: str) -> bool:
    """Whether a text is the JSON of a list of objects."""
    tools = _parsed(text)
    return isinstance(tools, list) and bool(tools) and all(isinstance(one, dict) for one in tools)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _grade_faults(column: pa.ListArray, completions: np.ndarray, indices: tuple[str, ...], value: str) -> Iterator[Fault]:
    rows, grades = parents(offsets_of(column)), column.flatten()
    if not len(grades):
        return

    def rule(name: str, words: str, bad: np.ndarray) -> Fault:
        mask = np.zeros(len(column), dtype=bool)
        mask[rows[bad]] = True
        return name, words, mask

    def numbers(name: str) -> np.ndarray:
        return grades.field(name).cast(pa.float64()).to_numpy(zero_copy_only=False)

    values = numbers(value)
    finite = np.isfinite(values)
    known = np.isin(grades.field("kind").to_numpy(zero_copy_only=False).astype(str), KINDS)
    nameless = np.zeros(len(grades), dtype=bool)
    for name in ("rater", "aspect"):
        texts = grades.field(name)
        nameless |= np.asarray(texts.is_null()) | (texts.fill_null("").to_numpy(zero_copy_only=False) == "")
    yield rule("grades", f"its {value} is no finite number up to {LARGEST:g}", ~(np.abs(values) <= LARGEST))
    yield rule("kinds", f"its kind is none of {', '.join(KINDS)}", ~known)
    yield rule("grades", "it has no rater or aspect", nameless)
    places = [numbers(name) for name in indices]
    for name, place in zip(indices, places, strict=True):
        yield rule("grades", f"{name} is none of the row's completions", ~((place >= 0) & (place < completions[rows])))
    for name in {"score": ("low", "high"), "gap": ("limit",)}[value]:
        endless = np.asarray(grades.field(name).is_valid()) & ~np.isfinite(numbers(name))
        yield rule("score range", f"{name} is no finite number; null says that there is none", endless)
    if value == "score":
        yield rule(
            "score range", "its score lies outside low..high", finite & ((values < numbers("low")) | (values > numbers("high")))
        )
    else:
        yield rule("score range", "its gap is larger than limit", finite & (np.abs(values) > numbers("limit")))
        yield rule("grades", "it compares a completion with itself", places[0] == places[1])
    spread = grades.field("spread").fill_null(0.0).to_numpy(zero_copy_only=False)
    yield rule("standard errors", "its spread is no finite number of at least 0", ~(np.isfinite(spread) & (spread >= 0)))
    yield rule("probabilities", "its probabilities are no shares that sum to at most 1", _impossible(grades.field("probabilities")))


def _impossible(probabilities: pa.ListArray) -> np.ndarray:
    """Which lists hold what is no probability, or sum to more than 1 (a hundredth is forgiven), shape (grades,)."""
    bad = np.zeros(len(probabilities), dtype=bool)
    if probabilities.null_count < len(probabilities):
        values, rows = probabilities.flatten().to_numpy(zero_copy_only=False), probabilities.value_parent_indices().to_numpy()
        sums = np.bincount(rows, np.nan_to_num(values, nan=np.inf), len(bad))
        bad[rows[~(values >= 0)]] = True
        bad |= sums > MOST_MASS
    return bad
