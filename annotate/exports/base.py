"""What an export is, what each loses of a dataset, and the pairs as a writer gets them: a batch at a time, without those left out."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, offsets_of, parents, whole_texts
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import resolve_gamma
from mmpo.pipeline.options import Gamma, options
from mmpo.pipeline.storage import batches, part_files, part_schema
from mmpo.pipeline.tables import MESSAGE_COLUMNS, OPTIONAL_KEYS, REPLY_KEYS, SPLITS, TOOLS, keys_of, without_nulls

Pair = dict[str, Any]
TIE = "tie"


@options
class ExportOptions:
    """What an export may be told; the line below each field is its help."""

    gamma: Gamma | None = None
    """γ in 1/margin-unit, auto or auto:MEAN. judge: its targets are σ(γ·margin) (auto unless given). trl-reward, openrlhf: adds a column
    `margin` of γ·margin, which these trainers subtract from the difference of rewards: Llama 2's objective, which is not MMPO's."""


@dataclass(frozen=True)
class Export:
    """One format. summary: a line about it; consumer: who reads it, and of which version that was tried; layout: file or folder.

    write(pairs, target) writes the file or folder `target` and returns what to do next, in words. keeps: what of FACETS the format holds.
    ties: whether it has a place for pairs without a better reply. takes: whether it can hold a prompt, by its roles; others are left out
    as `prompt_roles`. reads: what it has of replies, from their messages: pairs of which both read the same are left out as
    `same_replies`. gamma: whether γ says anything, and whether it must.
    """

    summary: str
    write: Callable[["ExportedPairs", Path], str | None]
    consumer: str = ""
    layout: str = "file"
    keeps: frozenset[str] = frozenset()
    splits: tuple[str, ...] = SPLITS
    ties: bool = True
    takes: Callable[[Sequence[str]], bool] | None = None
    reads: Callable[[pa.StructArray], pa.Array] | None = None
    gamma: str = ""


@dataclass(frozen=True)
class Facet:
    """Something that pairs may have and a format may lose. count: how many rows of a batch have it."""

    summary: str
    count: Callable[[pa.RecordBatch], int]


def _known(name: str) -> Callable[[pa.RecordBatch], int]:
    return lambda batch: batch.num_rows - batch[name].null_count


def _true(mask: Any) -> int:
    return pc.sum(mask).as_py() or 0


def _of_several(batch: pa.RecordBatch) -> int:
    return _true(pc.greater(batch["raters"], 1))


def _roles(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """The roles of all messages of the prompts, and the offsets at which each prompt's begin."""
    prompts = flat(batch["prompt"])
    offsets = offsets_of(prompts)
    return np.asarray(prompts.flatten().field("role").to_pylist(), dtype=object), offsets


def _with_role(role: str) -> Callable[[pa.RecordBatch], int]:
    def count(batch: pa.RecordBatch) -> int:
        roles, offsets = _roles(batch)
        return len(np.unique(parents(offsets)[roles == role]))

    return count


def _continued(batch: pa.RecordBatch) -> int:
    roles, offsets = _roles(batch)
    ends = offsets[1:][np.diff(offsets) > 0] - 1
    return int((roles[ends] == "assistant").sum())


def _with_keys_set(batch: pa.RecordBatch, keys: Collection[str]) -> int:
    """How many rows have any of OPTIONAL_KEYS set in a message, or as a column."""
    found = np.zeros(batch.num_rows, dtype=bool)
    if TOOLS in keys and TOOLS in batch.schema.names:
        found |= np.asarray(batch[TOOLS].is_valid())
    for name in set(MESSAGE_COLUMNS) & set(batch.schema.names):
        messages = flat(batch[name])
        inside = messages.flatten()
        for key in keys:
            if inside.type.get_field_index(key) >= 0:
                found[parents(offsets_of(messages))[np.asarray(inside.field(key).is_valid())]] = True
    return int(found.sum())


FACETS: dict[str, Facet] = {
    "order": Facet("which reply is better, or that neither is", lambda batch: batch.num_rows),
    "margins": Facet("how much better, not only which", lambda batch: _true(pc.greater(batch["quality_margin"], 0))),
    "errors": Facet("the margins' standard errors", _known("margin_se")),
    "scores": Facet("the scores that margins are differences of", _known("score_chosen")),
    "raters": Facet("how many raters there were", _of_several),
    "preferring": Facet("how many of the raters preferred the chosen one", _of_several),
    "kind": Facet("whether people or models graded", _known("kind")),
    "models": Facet("which models wrote the replies", _known("chosen_model")),
    "turns": Facet("conversations of several turns", _with_role("assistant")),
    "system": Facet("system messages", _with_role("system")),
    "prefixes": Facet("prompts that end in words of the assistant's, which the reply goes on from", _continued),
    "splits": Facet("which split a pair belongs to", lambda batch: batch.num_rows),
}
"""What a format may lose, each with how it is counted; `mmpo export` says of how many pairs. Of thinking and tools: `KEYED`."""
KEYED = {"tools": (TOOLS, "tool_calls", "tool_call_id"), "thinking": ("reasoning_content",)}
"""As FACETS, of what messages carry only where a dataset has any: the fields that they are in."""
TOLD = {
    **{name: facet.summary for name, facet in FACETS.items()},
    "tools": "tools on offer, calls and their answers, as such",
    "thinking": "thinking that stands apart from the reply",
}
_LOOKED_AT = ("quality_margin", "margin_se", "score_chosen", "raters", "kind", "chosen_model", "prompt.list.element.role")


@dataclass
class ExportedPairs:
    """The pairs of a dataset as a writer gets them. parts: the files of each split that has any; keys: those of OPTIONAL_KEYS that the
    dataset has; gamma: resolved, None where none was asked for; left_out: by reason; lost: by facet, of how many pairs."""

    kind: Export
    parts: dict[str, list[Path]]
    keys: tuple[str, ...]
    gamma: float | None
    counts: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a split that the format takes, at most 2,048 at once."""
        needed = {"quality_margin", *(("prompt",) if self.kind.takes else ()), *self._compared}
        for batch in batches(self.parts[split], [*columns, *(needed - set(columns))]):
            kept = self._kept(batch)
            yield (batch if kept is None else batch.filter(kept)).select(list(columns))

    def rows(self, split: str, columns: Sequence[str]) -> Iterator[Pair]:
        """As `batches`, a row at a time."""
        for batch in self.batches(split, columns):
            yield from batch.to_pylist()

    @property
    def _compared(self) -> tuple[str, ...]:
        """The columns of replies where two of one pair may read the same: what tells them apart is not in their texts."""
        return MESSAGE_COLUMNS[1:] if self.kind.reads is not None and set(REPLY_KEYS) & set(self.keys) else ()

    def _kept(self, batch: pa.RecordBatch, left_out: Counter[str] | None = None) -> pa.Array | None:
        """Which rows the format takes, None for all of them; others are counted."""
        if self.kind.ties and self.kind.takes is None and not self._compared:
            return None
        kept = np.ones(batch.num_rows, dtype=bool)
        if not self.kind.ties:
            kept = np.asarray(pc.greater(batch["quality_margin"], 0))
            self._count(left_out, TIE, kept)
        if self.kind.takes is not None:
            roles, offsets = _roles(batch)
            fits = np.array([self.kind.takes(list(roles[a:b])) for a, b in zip(offsets[:-1], offsets[1:])], dtype=bool)
            self._count(left_out, "prompt_roles", fits | ~kept)
            kept = kept & fits
        if self.kind.reads is not None and self._compared:
            one, other = (self.kind.reads(flat(batch[name]).flatten()) for name in self._compared)
            differ = np.asarray(pc.not_equal(one, other))
            self._count(left_out, "same_replies", differ | ~kept)
            kept = kept & differ
        return pa.array(kept)

    @staticmethod
    def _count(left_out: Counter[str] | None, reason: str, fits: np.ndarray) -> None:
        if left_out is not None and not fits.all():
            left_out[reason] += int((~fits).sum())

    def look(self) -> None:
        """Count what is written, left out and lost, reading no text where none can be the same; splits without any left are gone."""
        lacking = [name for name in FACETS if name not in self.kind.keeps]
        keyed = {name: set(keys) & set(self.keys) for name, keys in KEYED.items() if name not in self.kind.keeps}
        own = [key for keys in keyed.values() for key in keys]
        inside = [f"{column}.list.element.{key}" for key in own if key != TOOLS for column in MESSAGE_COLUMNS]
        for split in list(self.parts):
            self.counts[split] = 0
            for batch in batches(self.parts[split], [*_LOOKED_AT, *inside, *({TOOLS} & set(own)), *self._compared], 65536):
                if (kept := self._kept(batch, self.left_out)) is not None:
                    batch = batch.filter(kept)
                self.counts[split] += batch.num_rows
                for name in lacking:
                    self.lost[name] += FACETS[name].count(batch)
                for name, keys in keyed.items():
                    self.lost[name] += _with_keys_set(batch, keys)
            if not self.counts[split]:
                del self.parts[split], self.counts[split]
        self.lost = +self.lost


def without_thinking(replies: pa.StructArray) -> pa.Array:
    """What is shown of replies: their texts and calls, as `as_text` has them."""
    return whole_texts(replies, thinking=False)


def opened(dataset: str | Path, kind: Export, given: ExportOptions, to: str) -> ExportedPairs:
    """The pairs of a dataset folder for a format, counted. Raises UserError: no dataset, nothing to write, γ where it says nothing."""
    parts = {split: files for split, files in part_files(dataset).items() if files}
    found = {key for files in parts.values() for file in files for key in keys_of(part_schema(file))}
    keys = tuple(key for key in OPTIONAL_KEYS if key in found)
    if given.gamma is not None and not kind.gamma:
        raise UserError(f"--gamma {given.gamma}: {to} has nothing that depends on γ; leave it out")
    wanted = given.gamma if given.gamma is not None else "auto" if kind.gamma == "needed" else None
    gamma = None if wanted is None else _gamma(wanted, parts)
    if gamma == math.inf and kind.gamma == "allowed":
        raise UserError(f"--gamma inf: {to} would subtract an infinite margin from every difference of rewards; give a finite γ")
    others = sum(batch.num_rows for split in parts.keys() - set(kind.splits) for batch in batches(parts[split], ["raters"], 65536))
    pairs = ExportedPairs(kind, {split: files for split, files in parts.items() if split in kind.splits}, keys, gamma)
    pairs.look()
    if others:
        pairs.left_out["other_split"] = others
    if not pairs.parts:
        why = ", ".join(f"{reason} {count:,}" for reason, count in pairs.left_out.most_common())
        raise UserError(f"{dataset} holds no pair that {to} can take" + (f" ({why})" if why else ""))
    return pairs


def _gamma(given: float | str, parts: Mapping[str, Sequence[Path]]) -> float:
    """γ, by the training pairs where it is auto; without any, by all."""
    files = parts.get("train") or [file for split in parts.values() for file in split]
    margins = [np.asarray(batch["quality_margin"]) for batch in batches(files, ["quality_margin"], 65536)]
    return resolve_gamma(given, np.concatenate(margins) if margins else np.zeros(0))


def line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON."""
    return dumped(row) + b"\n"


def dumped(value: Any) -> bytes:
    """JSON, in UTF-8."""
    try:
        return orjson.dumps(value)
    except TypeError:  # of an integer of more than 64 bits, as the arguments of a call may hold
        return json.dumps(value, ensure_ascii=False).encode()


def as_said(row: Pair) -> Pair:
    """The row with messages as templates ask for them: with the keys that are set and no others, tool calls as lists. Without tools where
    it has none; they stay text, which TRL reads."""
    said = {name: without_nulls(value) if name in MESSAGE_COLUMNS else value for name, value in row.items()}
    return {name: value for name, value in said.items() if name != TOOLS or value is not None}
