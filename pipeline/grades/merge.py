"""Bringing together all that was said about one prompt: partial FEEDBACK rows in, one row per prompt out.

The result has one order whatever the input's: prompts by id, completions by id, ratings by completion, rater, aspect and score. So sums
and choices later on depend on the data, never on how it was cut into files.
"""

import json
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import (
    LARGE_FEEDBACK,
    codes,
    flat,
    gather_lists,
    lists,
    offsets_of,
    parents,
    texts_of,
    to_numpy,
    with_fields,
)
from mmpo.pipeline.grades.aggregate import runs


def merge_prompts(table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """One row per prompt from rows that may share prompts.

    table: FEEDBACK with 64-bit text offsets; one row of a prompt must have each completion's text. Returns the merged table and how many
    rows of each unit were merged into another: {"prompt", "completion"}; grades are never merged. Of a completion that several rows
    name, the smallest model name is kept; of
    calls that are written in several ways, the smallest text.
    """
    if not table.num_rows:
        return table, {"prompt": 0, "completion": 0}
    prompt_of_row, ids = codes(flat(table["prompt_id"]))
    order = np.lexsort((_writing(table), prompt_of_row))
    first_row = order[np.searchsorted(prompt_of_row[order], np.arange(len(ids)))]

    completions, prompt_start, position = _completions(table, prompt_of_row, len(ids))
    messages = flat(table["prompt"])
    kept, starts = gather_lists(offsets_of(messages), first_row)
    merged = pa.Table.from_arrays(
        [
            pa.array(ids, pa.string()),
            lists(starts[:-1], messages.flatten().take(pa.array(kept))),
            lists(prompt_start[:-1], completions),
            _grades(table, "ratings", prompt_of_row, position, prompt_start, ("completion",), "score"),
            _grades(table, "comparisons", prompt_of_row, position, prompt_start, ("first", "second"), "gap"),
            _sources(flat(table["source"]), prompt_of_row, first_row),
            _extras(flat(table["extra"]), prompt_of_row),
            flat(table["tools"]).take(pa.array(first_row)),
        ],
        schema=LARGE_FEEDBACK,
    )
    before = len(position)
    return merged, {"prompt": table.num_rows - len(ids), "completion": before - len(completions)}


def _codes_of_set(column: pa.Array) -> np.ndarray:
    """Codes in the order of the values; without a look at them where all are null."""
    return codes(column)[0] if column.null_count < len(column) else np.zeros(len(column), dtype=np.int64)


def _writing(table: pa.Table) -> np.ndarray:
    """A number for how each row writes its prompt, shape (rows,): the same prompt may have calls with other ids, or tools with keys in
    another order (`tables.as_said`), and which of them is kept must not follow the order of the input."""
    prompts, found = flat(table["prompt"]), _codes_of_set(flat(table["tools"]))
    calls = prompts.flatten().field("tool_calls")
    if calls.null_count == len(calls):
        return found
    texts = [json.dumps(messages) if messages else "" for messages in prompts.to_pylist()]
    return np.unique([found, codes(pa.array(texts, pa.large_string()))[0]], axis=1, return_inverse=True)[1].reshape(-1)


def _completions(table: pa.Table, prompt_of_row: np.ndarray, prompts: int) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Distinct completions in order, each prompt's first one, and where each old completion went."""
    column = flat(table["completions"])
    old = column.flatten()
    prompt = prompt_of_row[parents(offsets_of(column))]
    identity, _ = codes(old.field("id"))
    model, models = codes(old.field("model"))
    if models and models[0] is None:
        model = np.where(model == 0, len(models), model)
    order = np.lexsort((_codes_of_set(old.field("tool_calls")), model, identity, prompt))
    starts, sizes = runs(prompt[order], identity[order])
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.repeat(np.arange(len(starts)), sizes)
    kept = order[starts]
    start = np.searchsorted(prompt[kept], np.arange(prompts + 1))
    taken = {one.name: old.field(one.name).take(pa.array(kept)) for one in old.type.fields if one.name != "text"}
    taken["text"] = texts_of(old, identity, kept)
    merged = pa.StructArray.from_arrays([taken[one.name] for one in old.type.fields], fields=old.type.fields)
    return merged, start, position


def _grades(
    table: pa.Table, name: str, prompt_of_row: np.ndarray, position: np.ndarray, start: np.ndarray, at: tuple[str, ...], value: str
) -> pa.Array:
    """The grades of each prompt in order. at: the fields that are indices into a row's completions, which become the prompt's."""
    column = flat(table[name])
    grades, prompts = column.flatten(), len(start) - 1
    if not len(grades):
        return lists(np.zeros(prompts, dtype=np.int64), grades)
    rows = parents(offsets_of(column))
    prompt, base = prompt_of_row[rows], offsets_of(flat(table["completions"]))[rows]
    moved = {field: position[base + np.asarray(grades.field(field))] - start[prompt] for field in at}
    names = [codes(grades.field(key))[0] for key in ("kind", "aspect", "rater")]
    keys = (to_numpy(grades.field(value)), *names, *reversed(moved.values()), prompt)
    order = _by_the_rest(grades, np.lexsort(keys), keys, {value, "kind", "aspect", "rater", *at})
    taken = grades.take(pa.array(order))
    merged = with_fields(taken, {field: pa.array(index[order]) for field, index in moved.items()})
    return lists(np.searchsorted(prompt[order], np.arange(prompts)), merged)


def _by_the_rest(grades: pa.StructArray, order: np.ndarray, keys: Sequence[np.ndarray], known: Collection[str]) -> np.ndarray:
    """The order with grades whose keys are equal put in that of their other fields, such as notes."""
    equal = np.logical_and.reduce([key[order[1:]] == key[order[:-1]] for key in keys])
    places = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    tied = grades.take(pa.array(order[places]))
    rest = []
    for name in (one.name for one in grades.type.fields if one.name not in known):
        if (column := tied.field(name)).null_count < len(tied):
            rest.append(codes(pa.array(map(str, column.to_pylist())) if pa.types.is_nested(column.type) else column)[0])
    if rest:
        group = np.append(0, np.cumsum(~equal))[places]
        order[places] = order[places][np.lexsort((*reversed(rest), group))]
    return order


def _sources(column: pa.Array, prompt_of_row: np.ndarray, first_row: np.ndarray) -> pa.Array:
    """A prompt that several sources name has them all, joined by " + "."""
    code, names = codes(column)
    if len(names) == 1:
        return column.take(pa.array(first_row))
    pairs = np.unique(np.stack([prompt_of_row, code]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(first_row))
    starts = np.concatenate([[0], np.cumsum(counts)])
    result: list[str] = []
    for low, high in zip(starts[:-1], starts[1:], strict=True):  # only where sources meet; a name may itself be a join
        parts = {part for index in pairs[1, low:high] for part in (names[index] or "").split(" + ")}
        result.append(" + ".join(sorted(parts)))
    return pa.array(result, pa.string())


def _extras(column: pa.Array, prompt_of_row: np.ndarray) -> pa.Array:
    """The smallest extra of a prompt that is not null: one of them, whatever the order of the rows."""
    code, said = codes(column)
    least = np.full(int(prompt_of_row.max(initial=-1)) + 1, len(said))
    kept = np.asarray(column.is_valid())
    np.minimum.at(least, prompt_of_row[kept], code[kept])
    return pa.array(said, pa.large_string()).take(pa.array(least, mask=least == len(said)))
