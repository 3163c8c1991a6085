"""The pairs of a dataset as arrays: what every figure of its page is made of, from one pass over the parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import UNREADABLE, coded, codes, flat, offsets_of, text_lengths, to_numpy, whole_texts
from mmpo.pipeline.contract import null_faults
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics import ratio_intervals
from mmpo.pipeline.report.page import seen
from mmpo.pipeline.storage import part_files, part_schema
from mmpo.pipeline.storage.parts import cannot_read, check_columns, row_groups
from mmpo.pipeline.tables import MESSAGE_KEYS, PAIRS, REPLY_KEYS, SPLITS, TOOLS, with_keys

NAMED = ("source", "kind", "chosen_model", "rejected_model")
"""Columns of names, kept as numbers."""
NUMBERS = {"quality_margin": "margin", "margin_se": "margin_se"}
GROUPS = 2000
"""Prompts are the clusters of intervals; of more than so many, groups of prompts at random are, which says the same."""
HEAD_BYTES = 32 << 20
_MIX = np.uint64(0x9E3779B97F4A7C15)
_WHOLE = with_keys(PAIRS, MESSAGE_KEYS).field("prompt").type


@dataclass(frozen=True)
class PairedCompletions:
    """Every completion of the pairs, once: its prompt, its text and its model as numbers (model −1: not known), its score (NaN: none);
    shape (completions,) each."""

    prompt: np.ndarray
    text: np.ndarray
    model: np.ndarray
    score: Floats


@dataclass(frozen=True)
class PairFigures:
    """Every pair over all splits, in the order of the parts, each of shape (pairs,).

    margin, margin_se: in score units (NaN: not known); chosen_length, rejected_length: in characters;
    preferring, raters: as in PAIRS; prompt: a number from 0; source, kind, chosen_model, rejected_model: places in `names` (−1: null);
    pair: a number from the two ids, in whichever order; turned: whether the chosen one has the larger id; splits: how many pairs each has.
    prompt_ids, folded: of every prompt, by its number, a number from its id, and one that prompts share whose texts are equal but for case
    and white space. heads: the prompts themselves (prompt_id, prompt, tools, side: a place in SPLITS), ascending by id, or None where they
    were not asked for or are too many.
    """

    margin: Floats
    margin_se: Floats
    chosen_length: Floats
    rejected_length: Floats
    preferring: np.ndarray
    raters: np.ndarray
    source: np.ndarray
    kind: np.ndarray
    chosen_model: np.ndarray
    rejected_model: np.ndarray
    prompt: np.ndarray
    pair: np.ndarray
    turned: np.ndarray
    prompt_ids: np.ndarray
    folded: np.ndarray
    names: dict[str, list[str]]
    completions: PairedCompletions
    splits: dict[str, int]
    heads: pa.Table | None = None

    @property
    def prompts(self) -> int:
        """How many different prompts there are."""
        return len(self.folded)

    @property
    def training(self) -> slice:
        """The pairs that γ is suggested from: the train split, which comes first; all pairs where it is empty."""
        return slice(self.splits["train"] or None)

    @cached_property
    def clusters(self) -> np.ndarray:
        """The cluster of each pair: its prompt, or of very many prompts a group of them."""
        return (self.prompt % GROUPS).astype(np.int64)

    @property
    def split(self) -> np.ndarray:
        """The place in `splits` of the split that each pair stands in."""
        return np.repeat(np.arange(len(self.splits)), list(self.splits.values()))


def pair_batches(dataset: Path) -> Iterator[tuple[str, Path, int, pa.RecordBatch]]:
    """The rows of all parts, texts as dictionaries where few stand in many rows: split, part, rows of it before, rows. UserError where the
    folder is no dataset, and where a part can't be read."""
    for split, files in part_files(dataset).items():
        for path in files:
            check_columns(part_schema(path), PAIRS, path)
            before = 0
            try:
                for _, group in row_groups(path):
                    for batch in group:
                        yield split, path, before, batch
                        before += batch.num_rows
            except UNREADABLE as error:
                raise cannot_read(path, error) from error


def read_figures(dataset: Path, heads: int = 0) -> PairFigures:
    """One pass over the part files; texts are measured and let go, but for the prompts of a dataset of at most so many `heads`, of
    HEAD_BYTES together. UserError as `pair_batches`, and where a row has no value that it needs or a margin that is no number."""
    reader = FiguresReader(dataset, heads)
    for split, part, before, batch in pair_batches(dataset):
        reader.add(split, part, before, batch)
    return reader.figures()


class FiguresReader:
    """What `read_figures` does, for whoever reads the parts anyhow; see there."""

    def __init__(self, dataset: Path, heads: int = 0) -> None:
        files = part_files(dataset)
        self.dataset, self.done, self._runs = dataset, 0, 0
        self.size = sum(_rows_in(path) for paths in files.values() for path in paths)
        self._rows: dict[str, np.ndarray] = {}
        self._parts: dict[str, list[np.ndarray]] = {}
        self._names: dict[str, dict[str, int]] = {name: {} for name in (*NAMED[:2], "model")}
        self._splits = dict.fromkeys(files, 0)
        self._heads = _Heads(heads)

    def add(self, split: str, part: Path, before: int, batch: pa.RecordBatch) -> None:
        """Take in rows, which come in the order of the parts."""
        _check(batch, part, before)
        self._splits[split] += batch.num_rows
        of_prompts = _of_prompts(batch, self._heads, split)
        for name, values in {**_of_rows(batch, self._names), "run": of_prompts.pop("run") + self._runs}.items():
            self._rows.setdefault(name, np.empty(self.size, values.dtype))[self.done : self.done + batch.num_rows] = values
        for name, values in {**of_prompts, **_of_completions(batch, self._names)}.items():
            self._parts.setdefault(name, []).append(values)
        self.done, self._runs = self.done + batch.num_rows, self._runs + len(of_prompts["head"])

    def figures(self) -> PairFigures:
        """The figures of all rows."""
        if not self.done:
            raise UserError(f"{self.dataset} holds no pairs: there is nothing to report on")
        rows, joined = self._rows, {name: np.concatenate(self._parts.pop(name)) for name in list(self._parts)}
        unique, first, inverse = np.unique(joined["head"], return_index=True, return_inverse=True)
        order = np.argsort(first)  # prompts are numbered as they come
        rank = np.empty(len(unique), dtype=np.int32)
        rank[order] = np.arange(len(unique))
        _, at = np.unique(joined["completion"], return_index=True)
        own = {name: joined[f"completion_{name}"][at] for name in ("prompt", "text", "model", "score")}
        own["prompt"] = rank[np.searchsorted(unique, own["prompt"])]
        return PairFigures(
            prompt=rank[inverse.reshape(-1)][rows.pop("run")],
            **rows,
            prompt_ids=unique[order],
            folded=joined["folded"][first[order]],
            names={name: [shortened(one) for one in known] for name, known in self._names.items()},
            completions=PairedCompletions(**own),
            splits=self._splits,
            heads=self._heads.table(),
        )


def _check(batch: pa.RecordBatch, part: Path, before: int) -> None:
    margin = to_numpy(batch.column("quality_margin"))
    faults = [(f"{words} (null)", mask) for name in PAIRS.names for _, words, mask in null_faults(batch.column(name), name)]
    for words, mask in (*faults, ("a quality_margin that is not finite", ~np.isfinite(margin))):
        if mask.any():
            place = f"{part}: row {before + int(np.argmax(mask)) + 1}"
            raise UserError(f"{place} has {words}; `mmpo validate` says how many, building the dataset again mends it")


class _Heads:
    """The prompts that came by, until they are too many."""

    def __init__(self, most: int) -> None:
        self.most, self.rows, self.bytes = most, 0, 0
        self.parts: list[pa.Table] = []

    def add(self, ids: pa.Array, prompts: pa.Array, tools: pa.Array, split: str) -> None:
        """Take in the prompts of a batch."""
        self.rows += len(ids)
        if self.rows <= self.most and self.bytes <= HEAD_BYTES:
            columns = {"prompt_id": ids.cast(pa.string()), "prompt": prompts.cast(_WHOLE), "tools": tools.cast(pa.string())}
            part = pa.table({**columns, "side": pa.repeat(pa.scalar(SPLITS.index(split), pa.int8()), len(ids))})
            self.bytes += part.nbytes
            self.parts.append(part)

    def table(self) -> pa.Table | None:
        """All of them, each once, ascending by id; None where they are too many."""
        if not self.parts or self.rows > self.most or self.bytes > HEAD_BYTES:
            return None
        table = pa.concat_tables(self.parts).combine_chunks()
        numbers, ids = codes(flat(table["prompt_id"]))
        order = np.argsort(numbers, kind="stable")
        return table.take(pa.array(order[np.searchsorted(numbers[order], np.arange(len(ids)))]))


def shortened(name: str, most: int = 160) -> str:
    """A name as pages show it: nothing in it that is not seen, and no longer than a few lines."""
    return seen(name if len(name) <= most else name[: most - 1] + "…")


def _rows_in(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except UNREADABLE as error:
        raise cannot_read(path, error) from error


def numbers_of(ids: pa.Array) -> np.ndarray:
    """A number for each id, uint64, the same in every run: both halves of its 32 hexadecimal digits, or a digest of what is none.

    >>> numbers_of(pa.array(["0000000000000001000000000000000f"])).tolist()
    [14]
    """
    texts = ids.cast(pa.string()).to_pylist()
    try:
        raw = bytes.fromhex("".join(texts))
        if len(raw) == 16 * len(texts) and all(len(text) == 32 for text in texts):
            halves = np.frombuffer(raw, ">u8").reshape(-1, 2)
            return (halves[:, 0] ^ halves[:, 1]).astype(np.uint64)
    except ValueError:
        pass  # ids of another making
    return np.array([int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts], dtype=np.uint64)


def _named(column: pa.Array, names: dict[str, int]) -> np.ndarray:
    numbers, found = coded(column)
    places = np.array([names.setdefault(name, len(names)) for name in found.to_pylist()] + [-1], dtype=np.int32)
    return places[numbers]


def _of_rows(batch: pa.RecordBatch, names: dict[str, dict[str, int]]) -> dict[str, np.ndarray]:
    own = {name: _named(batch.column(name), names["model" if name.endswith("model") else name]) for name in NAMED}
    chosen, rejected = (_numbered(batch.column(name)) for name in ("chosen_id", "rejected_id"))
    return {
        **{name: to_numpy(batch.column(column)) for column, name in NUMBERS.items()},
        **{f"{side}_length": text_lengths(batch.column(side)).astype(np.int32) for side in ("chosen", "rejected")},
        **{name: batch.column(name).to_numpy(zero_copy_only=False).astype(np.int32) for name in ("preferring", "raters")},
        **own,
        "pair": np.minimum(chosen, rejected) * _MIX + np.maximum(chosen, rejected),
        "turned": chosen > rejected,
    }


def _numbered(ids: pa.Array) -> np.ndarray:
    numbers, found = coded(ids)
    return numbers_of(found)[numbers]


def _of_prompts(batch: pa.RecordBatch, kept: _Heads, split: str) -> dict[str, np.ndarray]:
    """The run of rows of one prompt that each row is in, (rows,); of each run the prompt's number, and that of its texts without case and
    white space."""
    ids = coded(batch.column("prompt_id"))[0]
    begins = np.append(True, ids[1:] != ids[:-1])
    starts = pa.array(np.flatnonzero(begins))
    heads = batch.column("prompt").take(starts)
    tools = batch.column(TOOLS).take(starts) if TOOLS in batch.schema.names else pa.nulls(len(starts), pa.string())
    kept.add(batch.column("prompt_id").take(starts), heads, tools, split)
    contents, offsets = whole_texts(heads.flatten()).to_pylist(), offsets_of(heads).tolist()
    folded = [
        hash("\0".join(" ".join(text.casefold().split()) for text in (*contents[a:b], offered or "")))
        for a, b, offered in zip(offsets, offsets[1:], tools.cast(pa.string()).to_pylist(), strict=False)
    ]
    return {
        "run": np.cumsum(begins).astype(np.int32) - 1,
        "head": _numbered(batch.column("prompt_id").take(starts)),
        "folded": np.array(folded, dtype=np.int64),
    }


def _of_completions(batch: pa.RecordBatch, names: dict[str, dict[str, int]]) -> dict[str, np.ndarray]:
    """Each completion of the batch once: where it stands first."""
    n = batch.num_rows
    both = pa.concat_arrays(
        [
            one if pa.types.is_dictionary(one.type) else one.dictionary_encode()
            for one in map(batch.column, ("chosen_id", "rejected_id"))
        ]
    )
    numbers, ids = coded(both)
    first = np.full(len(ids), -1)
    first[numbers[::-1]] = np.arange(2 * n)[::-1]
    there = np.flatnonzero(first >= 0)
    first = first[there]
    found: dict[str, np.ndarray] = {
        "completion": numbers_of(ids.take(pa.array(there))),
        "completion_prompt": _numbered(batch.column("prompt_id"))[first % n],
    }
    own = {"text": np.zeros(len(first), np.int64), "model": np.zeros(len(first), np.int32), "score": np.zeros(len(first))}
    for number, side in enumerate(("chosen", "rejected")):
        mine = np.flatnonzero(first // n == number)
        rows = pa.array(first[mine] % n)
        own["text"][mine] = _text_numbers(batch.column(side).take(rows))
        own["model"][mine] = _named(batch.column(f"{side}_model").take(rows), names["model"])
        own["score"][mine] = to_numpy(batch.column(f"score_{side}").take(rows))
    return {**found, **{f"completion_{name}": values for name, values in own.items()}}


def _text_numbers(replies: pa.ListArray) -> np.ndarray:
    """A number for what each reply says, calls and thinking apart from the text included; equal in one run only."""
    offsets, messages = offsets_of(replies), replies.flatten()
    total = np.zeros(len(messages) + 1, dtype=np.int64)
    for name in ("content", *REPLY_KEYS):
        if name in {field.name for field in messages.type.fields}:
            numbers, texts = coded(messages.field(name))
            own = np.array([*map(hash, texts.to_pylist()), 0], dtype=np.int64)
            total[:-1] = total[:-1] * np.int64(-7046029254386353131) + own[numbers]
    return total[np.where(np.diff(offsets) > 0, offsets[1:] - 1, len(messages))]


def share_95(figures: PairFigures, value: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """{"share": Σ value/Σ weight, None where nothing has weight, "share_95", "pairs": Σ weight}; value, weight: shape (pairs,)."""
    [row] = shares_95(figures, value, weight, np.zeros(len(value), dtype=np.int8), 1)
    return row


def shares_95(figures: PairFigures, value: np.ndarray, weight: np.ndarray, group: np.ndarray, groups: int) -> list[dict[str, Any]]:
    """`share_95` of each group of pairs; group: from 0, −1 leaves a pair out."""
    return ratio_rows(*cluster_sums(figures, group, groups, value, weight))


def cluster_sums(figures: PairFigures, group: np.ndarray, groups: int, *values: np.ndarray) -> list[Floats]:
    """Σ of each of the values by cluster and group, (clusters, groups); values, group: shape (pairs,), group −1 is left out."""
    count = min(figures.prompts, GROUPS)
    at = figures.clusters if groups == 1 else figures.clusters * groups + group
    if len(group) and group.min() < 0:
        at = np.where(group >= 0, at, count * groups)
    size = count * groups
    return [
        np.bincount(at, one.astype(np.float64), minlength=size + 1)[:size].reshape(count, groups).astype(np.float64)
        for one in values
    ]


def ratio_rows(value: Floats, weight: Floats, shares: bool = True) -> list[dict[str, Any]]:
    """{"share", "share_95", "pairs"} of each group, from its sums by cluster, (clusters, groups) each."""
    totals = (one.sum(axis=0).tolist() for one in (value, weight))
    return [
        {"share": a / b if b else None, "share_95": bound if b else None, "pairs": int(b)}
        for a, b, bound in zip(*totals, ratio_intervals(value, weight, shares), strict=True)
    ]


def longer_wins(figures: PairFigures, kept: np.ndarray | None = None) -> dict[str, Any]:
    """Share of pairs (margin above 0, lengths that differ) whose chosen completion is the longer one, with its interval; ½ is no bias."""
    difference = figures.chosen_length - figures.rejected_length
    used = (figures.margin > 0) & (difference != 0)
    used = used if kept is None else used & kept
    return share_95(figures, used & (difference > 0), used)


def source_rows(figures: PairFigures) -> list[dict[str, Any]]:
    """A row per source, largest first: pairs, ties, mean and median margin, mean standard error, longer wins."""
    count = len(figures.names["source"])
    sizes = np.bincount(figures.source, minlength=count)
    difference = figures.chosen_length - figures.rejected_length
    used = (figures.margin > 0) & (difference != 0)
    longer = shares_95(figures, used & (difference > 0), used, figures.source, count)
    rows = []
    for at in sorted(range(count), key=lambda one: (-sizes[one], figures.names["source"][one])):
        mine = figures.source == at
        margin, se = figures.margin[mine], figures.margin_se[mine]
        known = se[~np.isnan(se)]
        rows.append(
            {
                "source": figures.names["source"][at],
                "kind": ", ".join(sorted(figures.names["kind"][kind] for kind in np.unique(figures.kind[mine]))),
                "pairs": int(sizes[at]),
                "ties": float((margin == 0).mean()),
                "mean_margin": float(margin.mean()),
                "median_margin": float(np.median(margin)),
                "mean_se": float(known.mean()) if len(known) else None,
                "longer_wins": longer[at]["share"],
                "longer_wins_95": longer[at]["share_95"],
            }
        )
    return rows


def quantiles(values: Floats, shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)) -> Mapping[str, float]:
    """Quantiles by name, such as "10%"; none of no values.

    >>> quantiles(np.array([0.0, 1.0, 2.0]), (0.5,))
    {'50%': 1.0}
    """
    return (
        {f"{share:.0%}": float(value) for share, value in zip(shares, np.quantile(values, shares), strict=True)}
        if len(values)
        else {}
    )
