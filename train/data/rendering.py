"""The completions of pairs as token ids: each rendered once, prompt by prompt as the texts are read, and none of the texts kept."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import differing_messages, to_numpy
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import TOOLS, without_nulls
from mmpo.train.data.render import Rendered, Renderer

PROMPTS_AT_ONCE = 64
"""Prompts whose texts go through the tokenizer together."""


@dataclass(frozen=True)
class Names:
    """Which prompts and completions pairs are of. prompts, completions: their ids, sorted; prompt_of: the number of each pair's prompt,
    (pairs,); sides: of its chosen and rejected completion, (pairs, 2); owner: of each completion's prompt, (completions,)."""

    prompts: pa.Array
    completions: pa.Array
    prompt_of: np.ndarray
    sides: np.ndarray
    owner: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Names":
        """Raises UserError where an id stands for completions of two prompts."""
        prompts, prompt_of = numbered(table["prompt_id"])
        both = pa.chunked_array([*table["chosen_id"].chunks, *table["rejected_id"].chunks], pa.string())
        completions, codes = numbered(both)
        owner = np.zeros(len(completions), dtype=np.int64)
        of = np.tile(prompt_of, 2)
        owner[codes[::-1]] = of[::-1]  # the first one stays

        def two_prompts(at: int) -> str:
            return f"the completion {both[at]} stands under two prompts, {prompts[owner[codes[at]]]} and {prompts[of[at]]} ("

        refuse_ambiguous(of != owner[codes], two_prompts, "places")
        return cls(prompts, completions, prompt_of, codes.reshape(2, table.num_rows).T, owner)


def numbered(names: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Sorted distinct names, and the number of each place's."""
    distinct = pc.unique(names)
    distinct = distinct.take(pc.sort_indices(distinct))
    return distinct, to_numpy(pc.index_in(names, value_set=distinct)).astype(np.int64)


def refuse_ambiguous(bad: np.ndarray, found: Callable[[int], str], where: str) -> None:
    """Raises UserError where an id stands for several things. bad: at which places it does; found: says what stands at one."""
    if bad.any():
        raise UserError(
            f"{found(int(bad.argmax()))}{int(bad.sum())} of {len(bad)} {where} are such): an id is that of one prompt, or of one "
            "completion of one prompt. `mmpo validate` lists such pairs; build them again with `mmpo build`"
        )


def messages_at(column: pa.ChunkedArray, places: np.ndarray) -> list[list[dict[str, Any]]]:
    """The messages at these places, as templates take them."""
    found = column.take(pa.array(places)).to_pylist()
    return found if column.type.value_type.num_fields == 2 else [without_nulls(messages) for messages in found]


@dataclass
class _Conversation:
    """A prompt with those of its completions that have been read. left: how many have not."""

    number: int
    left: int
    prompt: list[dict[str, Any]]
    tools: str | None
    replies: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


def conversations(
    batches: Iterable[pa.Table], names: Names, renderer: Renderer
) -> Iterator[tuple[int, Sequence[int], Sequence[Rendered | None] | None]]:
    """The number of each prompt, of its completions, and those rendered; None where the prompt itself is left out. A prompt comes as soon
    as all its completions have been read. batches: rows of pairs, of which those that `names` lacks are passed over.

    Raises UserError where an id stands for two texts.
    """
    ready: list[_Conversation] = []
    for one in _gathered(batches, names):
        ready.append(one)
        if len(ready) == PROMPTS_AT_ONCE:
            yield from _rendered(ready, renderer)
            ready = []
    yield from _rendered(ready, renderer)


def _rendered(
    ready: Sequence[_Conversation], renderer: Renderer
) -> Iterator[tuple[int, Sequence[int], Sequence[Rendered | None] | None]]:
    orders = [sorted(one.replies) for one in ready]
    asked = [
        (one.prompt, None if one.tools is None else json.loads(one.tools), [one.replies[place] for place in order])
        for one, order in zip(ready, orders, strict=True)
    ]
    for one, order, items in zip(ready, orders, renderer.conversations(asked), strict=True):
        yield one.number, order, items


def _gathered(batches: Iterable[pa.Table], names: Names) -> Iterator[_Conversation]:
    of_each = np.bincount(names.owner, minlength=len(names.prompts))
    prompts, completions = _Seen(len(names.prompts), "prompt"), _Seen(len(names.completions), "completion")
    waiting: dict[int, _Conversation] = {}
    for batch in batches:
        codes = _places(batch["prompt_id"], names.prompts)
        tools = batch[TOOLS].to_pylist() if TOOLS in batch.column_names else [None] * batch.num_rows
        for code, row, messages in prompts.new(codes, batch["prompt"], batch["prompt_id"], tools):
            waiting[code] = _Conversation(code, int(of_each[code]), messages, tools[row])
        both = [
            pa.chunked_array([*batch[one].chunks, *batch[other].chunks])
            for one, other in (("chosen_id", "rejected_id"), ("chosen", "rejected"))
        ]
        for code, _, messages in completions.new(_places(both[0], names.completions), both[1], both[0]):
            one = waiting[int(names.owner[code])]
            one.replies[code] = messages
            one.left -= 1
            if not one.left:
                yield waiting.pop(one.number)
    if waiting:
        raise RuntimeError(f"{len(waiting)} prompts have completions that stand nowhere")


def _places(given: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    return to_numpy(pc.fill_null(pc.index_in(given, value_set=names), -1)).astype(np.int64)


class _Seen:
    """The texts that ids have been seen with."""

    def __init__(self, count: int, kind: str) -> None:
        self.digests, self.known, self.kind = np.zeros((count, 16), dtype=np.uint8), np.zeros(count, dtype=bool), kind

    def new(
        self, codes: np.ndarray, messages: pa.ChunkedArray, ids: pa.ChunkedArray, tools: Sequence[str | None] = ()
    ) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
        """What is seen for the first time: number, row, messages. codes: a number for each row, -1 for what is not asked for.

        Raises UserError for an id with another text, or other tools, than it has elsewhere.
        """
        rows = np.flatnonzero(codes >= 0)
        found, place, back = np.unique(codes[rows], return_index=True, return_inverse=True)
        first = np.arange(len(codes))
        first[rows] = rows[place[back]]
        where = "rows" if self.kind == "prompt" else "places"
        texts = differing_messages(messages, first)
        refuse_ambiguous(texts, lambda at: f"the {self.kind} {ids[at]} has two texts (row {at}; ", where)
        other = (
            np.array([one != tools[before] for one, before in zip(tools, first.tolist(), strict=True)], dtype=bool)
            if tools
            else texts
        )
        refuse_ambiguous(other, lambda at: f"the prompt {ids[at]} offers other tools (row {at}; ", "rows")
        for code, row, one in zip(found.tolist(), rows[place].tolist(), messages_at(messages, rows[place]), strict=True):
            said = repr((one, tools[row] if tools else None)).encode("utf-8", "surrogatepass")
            digest = np.frombuffer(blake2b(said, digest_size=16).digest(), dtype=np.uint8)
            if not self.known[code]:
                self.known[code], self.digests[code] = True, digest
                yield code, row, one
            elif (self.digests[code] != digest).any():
                several = " or offers other tools" if self.kind == "prompt" else ""
                raise UserError(
                    f"the {self.kind} {ids[row]} has two texts{several} in rows far from one another: an id is that of one prompt, or of "
                    "one completion of one prompt. `mmpo validate` lists such pairs; build them again with `mmpo build`"
                )
