"""PAIRS rows from chosen pairs. Texts stay in dictionaries until they are written: 57 copies of a text are 57 small integers."""

import numpy as np
import pyarrow as pa

from mmpo.pipeline.columns import flat, gather_lists, offsets_of
from mmpo.pipeline.pair import Margins
from mmpo.pipeline.tables import MESSAGES, PAIRS

__all__ = ["pairs_table"]


def pairs_table(feedback: pa.Table, margins: Margins, *, encoded: bool = False) -> pa.Table:
    """PAIRS from a FEEDBACK batch and the pairs chosen in it.

    encoded: leave text dictionary-encoded (Parquet stores the same either way); else the columns have PAIRS' types exactly.
    """
    completions = flat(feedback["completions"]).flatten()
    prompt, chosen, rejected = margins.prompt, margins.chosen, margins.rejected
    columns = {
        "prompt_id": _pick(flat(feedback["prompt_id"]), prompt),
        "chosen_id": _pick(completions.field("id"), chosen),
        "rejected_id": _pick(completions.field("id"), rejected),
        "prompt": _prompts(flat(feedback["prompt"]), prompt),
        "chosen": _replies(completions.field("text"), chosen),
        "rejected": _replies(completions.field("text"), rejected),
        "score_chosen": pa.array(margins.score_chosen, from_pandas=True),
        "score_rejected": pa.array(margins.score_rejected, from_pandas=True),
        "quality_margin": pa.array(margins.quality_margin),
        "margin_se": pa.array(margins.margin_se, from_pandas=True),
        "preferring": pa.array(margins.preferring, pa.int32()),
        "raters": pa.array(margins.raters, pa.int32()),
        "kind": _pick(pa.array(margins.kinds, pa.string()), margins.kind),
        "chosen_model": _pick(completions.field("model"), chosen),
        "rejected_model": _pick(completions.field("model"), rejected),
        "source": _pick(flat(feedback["source"]), prompt),
    }
    if encoded:
        return pa.table(columns)
    return pa.table({name: _decoded(columns[name], field.type) for name, field in zip(PAIRS.names, PAIRS, strict=True)}).cast(PAIRS)


def _pick(values: pa.Array, index: np.ndarray) -> pa.Array:
    """values[index] as a dictionary array that holds only what is used; nulls stay nulls of the index."""
    used, inverse = np.unique(index, return_inverse=True)
    dictionary = values.take(pa.array(used))
    inverse = inverse.reshape(-1).astype(np.int32)
    if dictionary.null_count:
        valid = np.asarray(dictionary.is_valid())
        places = np.cumsum(valid) - 1
        indices = pa.array(places[inverse].astype(np.int32), mask=~valid[inverse])
        return pa.DictionaryArray.from_arrays(indices, dictionary.drop_null())
    return pa.DictionaryArray.from_arrays(pa.array(inverse), dictionary)


def _messages(offsets: np.ndarray, roles: pa.Array, contents: pa.Array) -> pa.ListArray:
    message = pa.StructArray.from_arrays([roles, contents], names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), message)


def _replies(texts: pa.Array, index: np.ndarray) -> pa.ListArray:
    """Each text as a conversation of one assistant message."""
    roles = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(index), dtype=np.int32)), pa.array(["assistant"]))
    return _messages(np.arange(len(index) + 1), roles, _pick(texts, index))


def _prompts(prompts: pa.ListArray, index: np.ndarray) -> pa.ListArray:
    positions, offsets = gather_lists(offsets_of(prompts), index)
    messages = prompts.flatten()
    return _messages(offsets, _pick(messages.field("role"), positions), _pick(messages.field("content"), positions))


def _decoded(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind.equals(MESSAGES):
        messages = column.values
        return _messages(
            np.asarray(column.offsets),
            messages.field("role").dictionary_decode().cast(pa.string()),
            messages.field("content").dictionary_decode().cast(pa.string()),
        )
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
