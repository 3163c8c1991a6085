"""PAIRS rows from chosen pairs. A text is copied once a pair and no sooner: until here it is a position."""

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat, gather_lists, offsets_of
from mmpo.pipeline.grades.rules import Margins
from mmpo.pipeline.tables import MESSAGE, PAIRS

__all__ = ["pairs_table"]


def pairs_table(feedback: pa.Table, margins: Margins) -> pa.Table:
    """PAIRS from a FEEDBACK batch and the pairs chosen in it, at most 2 GiB of text a column."""
    completions = flat(feedback["completions"]).flatten()
    prompt, chosen, rejected = margins.prompt, margins.chosen, margins.rejected
    columns = {
        "prompt_id": flat(feedback["prompt_id"]).take(pa.array(prompt)),
        "chosen_id": completions.field("id").take(pa.array(chosen)),
        "rejected_id": completions.field("id").take(pa.array(rejected)),
        "prompt": _prompts(flat(feedback["prompt"]), prompt),
        "chosen": _replies(completions.field("text"), chosen),
        "rejected": _replies(completions.field("text"), rejected),
        "score_chosen": pa.array(margins.score_chosen, from_pandas=True),
        "score_rejected": pa.array(margins.score_rejected, from_pandas=True),
        "quality_margin": pa.array(margins.quality_margin),
        "margin_se": pa.array(margins.margin_se, from_pandas=True),
        "preferring": pa.array(margins.preferring, pa.int32()),
        "raters": pa.array(margins.raters, pa.int32()),
        "kind": pa.array(margins.kinds, pa.string()).take(pa.array(margins.kind)),
        "chosen_model": completions.field("model").take(pa.array(chosen)),
        "rejected_model": completions.field("model").take(pa.array(rejected)),
        "source": flat(feedback["source"]).take(pa.array(prompt)),
    }
    return pa.Table.from_arrays([columns[name] for name in PAIRS.names], schema=PAIRS)


def _messages(offsets: np.ndarray, roles: pa.Array, contents: pa.Array) -> pa.ListArray:
    message = pa.StructArray.from_arrays([roles, contents.cast(pa.string())], fields=list(MESSAGE))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), message)


def _replies(texts: pa.Array, index: np.ndarray) -> pa.ListArray:
    """Each text as a conversation of one assistant message."""
    return _messages(np.arange(len(index) + 1), pa.repeat(pa.scalar("assistant"), len(index)), texts.take(pa.array(index)))


def _prompts(prompts: pa.ListArray, index: np.ndarray) -> pa.ListArray:
    positions, offsets = gather_lists(offsets_of(prompts), index)
    messages = prompts.flatten()
    return _messages(offsets, messages.field("role").take(pa.array(positions)), messages.field("content").take(pa.array(positions)))
