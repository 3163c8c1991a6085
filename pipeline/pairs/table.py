"""Chosen pairs, and their PAIRS rows. A text is copied once per pair and no sooner: until here it is a position."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat, gather_lists, offsets_of
from mmpo.pipeline.tables import MESSAGE_KEYS, PAIRS, REPLY_KEYS, TOOLS, held_keys, with_keys

Evidence = Sequence[Mapping[str, Any]] | None
LeftOut = tuple[str, np.ndarray, np.ndarray, np.ndarray, Evidence]
"""A reason, prompt, chosen and rejected of the pairs that it left out, and what more there is to say of each."""


@dataclass
class ChosenPairs:
    """Pairs of a batch, all arrays of shape (pairs,). prompt: its row; chosen, rejected: positions among the batch's completions.

    margin_se: NaN where unknown; kind: a place in kinds; rounded_ties: which are ties of unequal values; agree: whether the raters who
    shall do, NaN where one of them did not grade both sides, None before that is known. created: how many pairs there were before any was
    left out; dropped, dropped_grades: pairs left out and grades that had no part, by reason.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    score_chosen: np.ndarray
    score_rejected: np.ndarray
    quality_margin: np.ndarray
    margin_se: np.ndarray
    preferring: np.ndarray
    raters: np.ndarray
    kind: np.ndarray
    kinds: list[str]
    rounded_ties: np.ndarray
    agree: np.ndarray | None = None
    created: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    used_grades: int = 0
    dropped_grades: dict[str, int] = field(default_factory=dict)

    def without(self, reason: str, out: np.ndarray, details: Evidence = None) -> "ChosenPairs":
        """Without the pairs of the mask, which are counted and kept under their reason, with the details of each where there are any."""
        if not out.any():
            return self
        self.dropped[reason] = int(out.sum())
        self.left_out.append((reason, self.prompt[out], self.chosen[out], self.rejected[out], details))
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: column[~out] for name, column in columns.items() if isinstance(column, np.ndarray)})


def pairs_table(
    feedback: pa.Table, pairs: ChosenPairs, keys: Collection[str] | None = None, *, repeating: bool = False
) -> pa.Table:
    """PAIRS from a FEEDBACK batch and the pairs chosen in it, at most 2 GiB of text per column. keys: those of OPTIONAL_KEYS that there are
    fields for; those that the batch holds, unless given. repeating: texts as dictionaries that hold each of them once, to be written."""
    schema = with_keys(PAIRS, held_keys(feedback) if keys is None else keys)
    completions = flat(feedback["completions"]).flatten()
    prompt = _Places.of(pairs.prompt, repeating)
    kind = schema.field("prompt").type
    columns = {
        "prompt_id": prompt.take(flat(feedback["prompt_id"])),
        "prompt": _prompts(flat(feedback["prompt"]), pairs.prompt, kind, repeating),
        "source": prompt.take(flat(feedback["source"])),
        "quality_margin": pa.array(pairs.quality_margin),
        "margin_se": pa.array(pairs.margin_se, from_pandas=True),
        "preferring": pa.array(pairs.preferring, pa.int32()),
        "raters": pa.array(pairs.raters, pa.int32()),
        "kind": _Places.of(pairs.kind, repeating).take(pa.array(pairs.kinds, pa.string())),
    }
    if TOOLS in schema.names:
        columns[TOOLS] = prompt.take(flat(feedback[TOOLS]))
    texts = completions.field("text")
    # once for both sides: long texts take their time
    said = texts.dictionary_encode() if repeating and not texts.null_count else None
    for side in ("chosen", "rejected"):
        places = getattr(pairs, side)
        at = _Places.of(places, repeating)
        if said is None or len(said.dictionary) == len(texts):
            content = at.take(texts, distinct=said is not None)
        else:
            content = _Places.of(np.asarray(said.indices)[places], repeating).take(said.dictionary, distinct=True)
        columns[side] = _replies(completions, at, content, kind)
        columns[f"{side}_id"] = at.take(completions.field("id"))
        columns[f"{side}_model"] = at.take(completions.field("model"))
        columns[f"score_{side}"] = pa.array(getattr(pairs, f"score_{side}"), from_pandas=True)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema.names)


class _Places(NamedTuple):
    """Where the texts of a column stand. once: distinct places in order, None where none is said twice; at: of each row its place, among
    `once` where that is given."""

    once: pa.Array | None
    at: pa.Array

    @classmethod
    def of(cls, at: np.ndarray, repeating: bool) -> "_Places":
        """From each row's place, shape (rows,)."""
        if not repeating:
            return cls(None, pa.array(at))
        if len(at) and (at == at[0]).all():
            return cls(pa.array(at[:1]), pa.array(np.zeros(len(at), dtype=np.int32)))
        used = np.zeros(int(at.max(initial=-1)) + 1, dtype=bool)
        used[at] = True
        number = np.cumsum(used, dtype=np.int32) - np.int32(1)
        return cls(pa.array(np.flatnonzero(used)), pa.array(number[at]))

    def take(self, texts: pa.Array, *, distinct: bool = False) -> pa.Array:
        """The rows' texts; a dictionary of distinct ones where places are used again. distinct: whether the texts are known to be."""
        if self.once is None:
            return texts.take(self.at).cast(pa.string())
        texts, at = texts.take(self.once).cast(pa.string()), self.at
        if not distinct:
            encoded = texts.dictionary_encode()
            texts, at = encoded.dictionary, encoded.indices.take(at)
        return pa.DictionaryArray.from_arrays(at, texts, safe=False)


def _messages(offsets: np.ndarray, fields: Mapping[str, pa.Array], kind: pa.ListType) -> pa.ListArray:
    names = [one.name for one in kind.value_type.fields]
    arrays = [fields[name] if name in fields else pa.nulls(int(offsets[-1]), pa.string()) for name in names]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.StructArray.from_arrays(arrays, names))


def _replies(completions: pa.StructArray, at: _Places, content: pa.Array, kind: pa.ListType) -> pa.ListArray:
    """Each completion as a conversation of one assistant message with this content."""
    size = len(at.at)
    fields = {"role": _Places.of(np.zeros(size, dtype=np.int64), at.once is not None).take(pa.array(["assistant"]))}
    fields["content"] = content
    fields |= {key: at.take(completions.field(key)) for key in _keys(kind) if key in REPLY_KEYS}
    return _messages(np.arange(size + 1), fields, kind)


def _prompts(prompts: pa.ListArray, index: np.ndarray, kind: pa.ListType, repeating: bool) -> pa.ListArray:
    positions, offsets = gather_lists(offsets_of(prompts), index)
    messages, at = prompts.flatten(), _Places.of(positions, repeating)
    return _messages(offsets, {key: at.take(messages.field(key)) for key in ("role", "content", *_keys(kind))}, kind)


def _keys(kind: pa.ListType) -> list[str]:
    return [one.name for one in kind.value_type.fields if one.name in MESSAGE_KEYS]
