"""Prompts that are the same or nearly the same, in one dataset or in two splits of it.

Every part of the input leaves a table of what is compared (`compared`): per prompt the shingles of its texts and the bands of their
signatures. `duplicates` reads those tables together, a band at a time. Of prompts that are alike the first by id stays; every other one is
left out because of one that stays, so that a chain A ~ B ~ C with A unlike C loses B alone. Nothing depends on the order of the input.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, lists, offsets_of, parents, whole_texts
from mmpo.pipeline.filters.minhash import bands_for, bands_of
from mmpo.pipeline.filters.words import NumberSets, jaccard, keys_of, shingles, words_of
from mmpo.pipeline.tables import SPLITS

SHOWN_CHARACTERS = 200
SYSTEM_ROLES = ("system", "developer")
MOST_OF_A_BAND, MOST_COMPARED = 256, 64
"""A bound for texts made of one large template, which share bands by thousands: of those that stay and have a band in common with a
prompt, the first 256 of each band are looked at, and the 64 of them that share most bands are compared."""
_PARTS = ("said", "last", "system")


class Duplicate(NamedTuple):
    """A prompt that is left out: its place in its table, the reason and the evidence."""

    row: int
    reason: str
    details: dict[str, Any]


def texts_of_prompts(table: pa.Table, *, calls: bool = True) -> dict[str, pa.Array]:
    """The texts by which prompts (prompt, tools) are compared, one per prompt: "said", all messages but the system's; "last", the last of
    them where there are several, else ""; "system", with the tools. Of a prompt of system messages alone, they are what is said.
    calls: whether what messages carry beside their content, tool calls and thinking, is among it."""
    prompts = flat(table["prompt"])
    messages, offsets = prompts.flatten(), offsets_of(prompts)
    contents = whole_texts(messages) if calls else pc.fill_null(messages.field("content").cast(pa.large_string()), "")
    system = np.asarray(pc.is_in(messages.field("role"), pa.array(SYSTEM_ROLES))) if len(messages) else np.zeros(0, dtype=bool)
    row = parents(offsets)
    said_of = np.bincount(row[~system], minlength=len(prompts))
    system = system & (said_of[row] > 0)
    between = pa.scalar("\n", pa.large_string())

    def joined(which: np.ndarray) -> pa.Array:
        chosen = np.flatnonzero(which)
        of_prompts = lists(np.searchsorted(row[chosen], np.arange(len(prompts))), contents.take(pa.array(chosen)))
        return pc.binary_join(of_prompts, between)

    spoken = np.flatnonzero(~system)
    ends = np.searchsorted(row[spoken], np.arange(len(prompts)), side="right") - 1
    several = np.bincount(row[spoken], minlength=len(prompts)) > 1
    last = pa.array(spoken[ends] if len(spoken) else ends, mask=~several)
    head = joined(system)
    held = pc.fill_null(flat(table["tools"]).cast(pa.large_string()), "")
    return {
        "said": joined(~system),
        "last": pc.fill_null(contents.take(last), ""),
        "system": pc.binary_join_element_wise(head, held, between),
    }


def _shown(texts: Mapping[str, pa.Array]) -> pa.Array:
    """How the last message of each prompt begins."""
    last = pc.if_else(pc.equal(texts["last"], ""), texts["said"], texts["last"])
    return pc.utf8_slice_codeunits(last, 0, SHOWN_CHARACTERS)


def prompt_texts(prompts: pa.Table) -> list[str]:
    """How the last message of each prompt begins, to be shown."""
    return _shown(texts_of_prompts(prompts)).to_pylist()


def compared(ids: pa.Array, texts: Mapping[str, pa.Array], side: np.ndarray, similarity: float, count: int) -> pa.Table:
    """What `duplicates` asks of prompts, ascending by id. texts: as of `texts_of_prompts`; side: the split of each, a place in SPLITS."""
    words = {name: words_of(text) for name, text in texts.items()}
    sets = {name: shingles(words[name], count) for name in _PARTS}
    columns: dict[str, Any] = {
        "prompt_id": ids,
        "side": pa.array(side, pa.int8()),
        "text": _shown(texts),
        "key": keys_of(words["said"]),
        **{name: _lists(one) for name, one in sets.items()},
    }
    if similarity < 1:
        bands = bands_of(sets["said"], similarity)
        columns |= {f"band_{place}": np.ascontiguousarray(bands[:, place]) for place in range(bands.shape[1])}
    return pa.table(columns)


def _lists(sets: NumberSets) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(sets.offsets.astype(np.int32)), pa.array(sets.values))


class _Column:
    """A column of lists of numbers of several tables, row by row, without a copy."""

    def __init__(self, tables: Sequence[pa.Table], name: str) -> None:
        chunks = [chunk for table in tables for chunk in table[name].chunks if len(chunk)]
        self.starts = np.cumsum([0, *map(len, chunks)])
        self.chunks = [(np.asarray(chunk.offsets), np.asarray(chunk.values)) for chunk in chunks]

    def __getitem__(self, row: int) -> np.ndarray:
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        offsets, values = self.chunks[at]
        place = row - int(self.starts[at])
        return values[offsets[place] : offsets[place + 1]]


def duplicates(
    tables: Sequence[pa.Table], similarity: float, *, across_splits: bool = False, gone: np.ndarray | None = None
) -> Iterator[list[Duplicate]]:
    """Of each table of `compared` (together ascending by id) the prompts that are left out. gone: a mask of those of all tables that have
    been left out already.

    across_splits: only those that are alike to one of test, or of validation, while they lie in a split before it; else all that are alike
    to one of a smaller id.
    """
    side = _numbers(tables, "side").astype(np.int64)
    order = np.argsort(-side, kind="stable") if across_splits else np.arange(len(side))
    level = -side if across_splits else np.arange(len(side))
    there = np.ones(len(side), dtype=bool) if gone is None else ~gone
    near = _near(tables, similarity, order, level, there, system=not across_splits)
    ids, texts = (
        pa.chunked_array([chunk for table in tables for chunk in table[name].chunks] or [[]]) for name in ("prompt_id", "text")
    )
    start, rows = 0, np.array(sorted(near), dtype=np.int64)
    for table in tables:
        found = []
        for row in rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + table.num_rows)].tolist():
            other, value, same = near[row]
            details = {"near": ids[other].as_py(), "similarity": round(value, 4)}
            if across_splits:
                details |= {"split": SPLITS[side[row]], "near_split": SPLITS[side[other]]}
            details |= {"text": texts[row].as_py(), "near_text": texts[other].as_py()}
            reason = "in_two_splits" if across_splits else "same_prompt" if same else "near_duplicate_prompt"
            found.append(Duplicate(row - start, reason, details))
        yield found
        start += table.num_rows


def _numbers(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int8), *(table[name].to_numpy() for table in tables)])


def _near(
    tables: Sequence[pa.Table], similarity: float, order: np.ndarray, level: np.ndarray, there: np.ndarray, *, system: bool
) -> dict[int, tuple[int, float, bool]]:
    """By prompt that is left out: the most alike of those that stay and have a lower level, how alike, and whether in the same words.

    order: in which prompts are looked at, levels ascending; there: those that are looked at; system: whether their system texts must be
    alike too.
    """
    key = _numbers(tables, "key")
    held = np.flatnonzero((key != 0) & there)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    names = ["key"] if similarity >= 1 else ["key", *(f"band_{place}" for place in range(bands_for(similarity)[0]))]
    shared = [np.zeros((2, 0), dtype=np.int64)]
    first = 0
    for name in names:
        values = _numbers(tables, name)[held]
        by_value = np.argsort(values, kind="stable")
        new = np.concatenate([[True], values[by_value][1:] != values[by_value][:-1]]) if len(values) else np.zeros(0, dtype=bool)
        bucket = np.cumsum(new) - 1
        crowded = np.bincount(bucket, minlength=1)[bucket] > 1 if len(bucket) else new
        shared.append(np.stack([held[by_value][crowded], bucket[crowded] + first]))
        first += len(values)
    rows, buckets = np.concatenate(shared, axis=1)
    by_rank = np.argsort(rank[rows], kind="stable")
    rows, buckets = rows[by_rank], buckets[by_rank]
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1, [len(rows)]]) if len(rows) else np.zeros(1, dtype=np.int64)
    parts = [_Column(tables, name) for name in (_PARTS if system else _PARTS[:2])]
    stay: dict[int, list[int]] = {}
    found: dict[int, tuple[int, float, bool]] = {}
    for low, high in zip(cuts[:-1].tolist(), cuts[1:].tolist()):  # in order: whether a prompt stays depends on those before it
        row, own = int(rows[low]), buckets[low:high].tolist()
        shared_bands = Counter(chain.from_iterable(stay.get(bucket, ()) for bucket in own))
        before = ((-n, one) for one, n in shared_bands.items() if level[one] < level[row])
        others = [one for _, one in (nsmallest(MOST_COMPARED, before) if len(shared_bands) > MOST_COMPARED else before)]
        best = (0.0, 0)
        for other in others:
            value = 1.0
            for part in parts:
                value = min(value, jaccard(part[row], part[other])) if value >= similarity else 0.0
            best = max(best, (value, -other))
        if best[0] >= similarity and others:
            found[row] = (-best[1], best[0], bool(key[row] == key[-best[1]]))
            continue
        for bucket in own:
            if len(kept := stay.setdefault(bucket, [])) < MOST_OF_A_BAND:
                kept.append(row)
    return found


def near_texts(texts: pa.Array, group: np.ndarray, similarity: float, count: int) -> dict[tuple[int, int], float]:
    """Texts of one group that are alike, as places (i, j) with i < j, and how alike they are. group: shape (texts,)."""
    words = words_of(texts)
    sets, key = shingles(words, count), keys_of(words)
    columns = [key] if similarity >= 1 else [key, *bands_of(sets, similarity).T]
    held = np.flatnonzero(key)
    pairs: set[tuple[int, int]] = set()
    for values in columns if len(held) else ():
        order = held[np.lexsort((held, values[held], group[held]))]
        same = (np.diff(group[order]) == 0) & (values[order][1:] == values[order][:-1])
        crowded = np.append(same, False) | np.concatenate([[False], same])
        order, ends = order[crowded], np.flatnonzero(~np.append(same, False)[crowded]) + 1
        for one in np.split(order, ends[:-1]):
            pairs.update(combinations(one.tolist(), 2))
    found = {}
    for one, other in sorted(pairs):
        value = jaccard(*(sets.values[sets.offsets[at] : sets.offsets[at + 1]] for at in (one, other)))
        if value >= similarity:
            found[one, other] = value
    return found
