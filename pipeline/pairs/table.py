"""Chosen pairs, and their PAIRS rows. A text is copied once per pair and no sooner: until here it is a position."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat, gather_lists, offsets_of
from mmpo.pipeline.tables import MESSAGE, PAIRS

LeftOut = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""A reason, and prompt, chosen and rejected of the pairs that it left out."""


@dataclass
class ChosenPairs:
    """Pairs of a batch, all arrays of shape (pairs,). prompt: its row; chosen, rejected: positions among the batch's completions.

    margin_se: NaN where unknown; kind: a place in kinds; rounded_ties: which are ties of unequal values. created: how many pairs there were
    before any was left out; dropped, dropped_grades: pairs left out and grades that had no part, by reason.
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
    created: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    used_grades: int = 0
    dropped_grades: dict[str, int] = field(default_factory=dict)

    def without(self, reason: str, out: np.ndarray) -> "ChosenPairs":
        """Without the pairs of the mask, which are counted and kept under their reason."""
        if not out.any():
            return self
        self.dropped[reason] = int(out.sum())
        self.left_out.append((reason, self.prompt[out], self.chosen[out], self.rejected[out]))
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: column[~out] for name, column in columns.items() if isinstance(column, np.ndarray)})


def pairs_table(feedback: pa.Table, pairs: ChosenPairs) -> pa.Table:
    """PAIRS from a FEEDBACK batch and the pairs chosen in it, at most 2 GiB of text per column."""
    completions = flat(feedback["completions"]).flatten()
    prompt, sides = pa.array(pairs.prompt), {"chosen": pa.array(pairs.chosen), "rejected": pa.array(pairs.rejected)}
    columns = {
        "prompt_id": flat(feedback["prompt_id"]).take(prompt),
        "prompt": _prompts(flat(feedback["prompt"]), pairs.prompt),
        "source": flat(feedback["source"]).take(prompt),
        "quality_margin": pa.array(pairs.quality_margin),
        "margin_se": pa.array(pairs.margin_se, from_pandas=True),
        "preferring": pa.array(pairs.preferring, pa.int32()),
        "raters": pa.array(pairs.raters, pa.int32()),
        "kind": pa.array(pairs.kinds, pa.string()).take(pa.array(pairs.kind)),
    }
    for side, at in sides.items():
        columns[side] = _replies(completions.field("text").take(at))
        columns[f"{side}_id"] = completions.field("id").take(at)
        columns[f"{side}_model"] = completions.field("model").take(at)
        columns[f"score_{side}"] = pa.array(getattr(pairs, f"score_{side}"), from_pandas=True)
    return pa.Table.from_arrays([columns[name] for name in PAIRS.names], schema=PAIRS)


def _messages(offsets: np.ndarray, roles: pa.Array, contents: pa.Array) -> pa.ListArray:
    message = pa.StructArray.from_arrays([roles, contents.cast(pa.string())], fields=list(MESSAGE))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), message)


def _replies(texts: pa.Array) -> pa.ListArray:
    """Each text as a conversation of one assistant message."""
    return _messages(np.arange(len(texts) + 1), pa.repeat(pa.scalar("assistant"), len(texts)), texts)


def _prompts(prompts: pa.ListArray, index: np.ndarray) -> pa.ListArray:
    positions, offsets = gather_lists(offsets_of(prompts), index)
    messages = prompts.flatten()
    return _messages(offsets, messages.field("role").take(pa.array(positions)), messages.field("content").take(pa.array(positions)))
