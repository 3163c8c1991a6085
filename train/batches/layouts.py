"""How prompts and completions are laid out as tensors: tries, in which tokens that completions share are computed once, or rows.

Each completion is there once whatever the number of its pairs.

A prompt's completions can be laid out as a trie over token ids in one sequence, every shared token once. Tokens lie in depth-first
order, so that a token's descendants are the block right behind it: one number a token, the column behind its last descendant, says
which tokens may see it.

`BATCHES` is the table of layouts. `Batch` is one forward pass; `MicroBatch` is whole prompts with all their pairs, in
one forward pass or, for prompts that are too large for one, in several.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpo.train.data import PromptPairs, Rendered

Group = Sequence[Rendered]
"""Completions behind one prompt."""
Segment = tuple[int, tuple[int, ...]]
"""Tokens of a stretch, and the numbers of the stretches before it on its path, from the root on."""


@dataclass(frozen=True, eq=False)
class Trie:
    """Token `ids`, their `positions` (depth, restarting at each branch) and `ends`, each (tokens,), int64.

    `ends[j]`: the column behind j's last descendant; token i sees token j iff j <= i < ends[j]. `paths`: one array a
    sequence, the columns of its tokens from the first to the last.
    """

    ids: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    paths: list[np.ndarray]


def trie_of(sequences: Sequence[Sequence[int]]) -> Trie:
    """The trie of full renderings; in sorted order each sequence shares exactly a prefix with the one before it.

    >>> trie = trie_of([[7, 8, 1, 2], [7, 8, 3], [7, 8, 1, 4]])
    >>> trie.ids.tolist(), trie.positions.tolist(), trie.ends.tolist()
    ([7, 8, 1, 2, 4, 3], [0, 1, 2, 3, 3, 2], [6, 6, 5, 4, 5, 6])
    """
    given = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    order = sorted(range(len(given)), key=lambda place: given[place].tolist())
    paths = list(given)
    ids, positions, ends = (np.zeros(sum(map(len, given)), dtype=np.int64) for _ in range(3))  # too long: cut at the end
    path, size = np.zeros(0, dtype=np.int64), 0
    for place in order:
        sequence = given[place]
        common = _common(ids[path], sequence)
        new = slice(size, size + len(sequence) - common)
        ids[new], positions[new] = sequence[common:], np.arange(common, len(sequence))
        paths[place] = path = np.concatenate([path[:common], np.arange(new.start, new.stop)])
        ends[path] = size = new.stop  # whoever is still on the path has descendants up to here
    return Trie(ids[:size], positions[:size], ends[:size], paths)


def segments_of(ends: np.ndarray) -> tuple[Segment, ...]:
    """The unbranched stretches of tries that lie one behind another, in order. ends: (tokens,), as in `Trie`.

    >>> segments_of(np.array([6, 6, 5, 4, 5, 6]))  # 7 8 (1 (2 | 4) | 3)
    ((2, ()), (1, (0,)), (1, (0, 1)), (1, (0, 1)), (1, (0,)))
    """
    # A token that continues its predecessor alone ends where that one ends; at a leaf, ends is the next column itself.
    starts = np.flatnonzero(np.concatenate([[True], ends[1:] != ends[:-1]]))
    sizes = np.diff(np.append(starts, len(ends)))
    found: list[Segment] = []
    path: list[int] = []
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        while path and ends[starts[path[-1]]] <= start:
            path.pop()
        found.append((int(size), tuple(path)))
        path.append(number)
    return tuple(found)


def _common(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


class _Movable:
    def to(self: Any, device: torch.device | str) -> Any:
        """The same on another device: its tensors (the parts of a micro-batch stay, and are moved when their turn comes)."""
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)})


@dataclass(frozen=True, eq=False)
class Batch(_Movable):
    """Completions laid out for one forward pass.

    input_ids, positions, ends: (rows, length); token i of a row sees token j iff j <= i < ends[j], padding sees itself.
    parents, tokens: (predicted,): a flat position (row · length + column), and the token that its output predicts.
    spans: (completion tokens,), numbers of predicted tokens, completion by completion; counts: (completions,), how
    many of them each has. last: (completions,), flat position of each completion's last token. lengths: (rows,), tokens
    of each row. segments: the unbranched stretches of a packed row, else empty.
    """

    input_ids: Tensor
    positions: Tensor
    ends: Tensor
    lengths: Tensor
    parents: Tensor
    tokens: Tensor
    spans: Tensor
    counts: Tensor
    last: Tensor
    segments: tuple[Segment, ...] = ()

    @property
    def attention_mask(self) -> Tensor:
        """1 for tokens, 0 for padding, (rows, length), int64."""
        columns = torch.arange(self.input_ids.shape[1], device=self.lengths.device)
        return (columns < self.lengths[:, None]).long()


@dataclass(frozen=True, eq=False)
class MicroBatch(_Movable):
    """Whole prompts and all their pairs: `parts` are forward passes over their completions, in order.

    chosen, rejected: (pairs,), numbers of completions. p, margin, weight: (pairs,). pairs: (pairs,), rows of the pairs
    in their table. reference, scores: (completions,), NaN where there is none; counts: (completions,), their tokens;
    prompts: (completions,), the number of the prompt of each. ids: prompt ids, for messages.
    """

    parts: tuple[Batch, ...]
    chosen: Tensor
    rejected: Tensor
    p: Tensor
    margin: Tensor
    weight: Tensor
    pairs: Tensor
    reference: Tensor
    counts: Tensor
    scores: Tensor
    prompts: Tensor
    ids: tuple[str, ...] = ()

    @property
    def computed_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return sum(part.input_ids.numel() for part in self.parts)


@dataclass(frozen=True)
class Layout:
    """One way to lay completions out. `build`: several groups, with a padding token, as a batch. `tree`: whether shared tokens are
    computed once. `packed`: whether everything lies in one row, without padding.
    """

    summary: str
    build: Callable[[Sequence[Group], int], Batch]
    tree: bool = True
    packed: bool = False

    def size(self, group: Group) -> tuple[int, int]:
        """What a group takes: so many rows of up to so many tokens."""
        if self.tree:
            return 1, len(trie_of([item.ids for item in group]).ids)
        return len(group), max(len(item.ids) for item in group)

    def tokens(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Computed tokens of groups of these sizes in one batch, padding included."""
        if self.packed:
            return sum(length for _, length in sizes)
        return sum(rows for rows, _ in sizes) * max(length for _, length in sizes)


def packed_batch(groups: Sequence[Group], pad_token: int) -> Batch:
    """All tries one behind another in one row."""
    tries = [trie_of([item.ids for item in group]) for group in groups]
    starts = np.cumsum([0, *(len(trie.ids) for trie in tries)])[:-1]
    joined = Trie(
        ids=np.concatenate([trie.ids for trie in tries]),
        positions=np.concatenate([trie.positions for trie in tries]),
        ends=np.concatenate([trie.ends + start for trie, start in zip(tries, starts, strict=True)]),
        paths=[path + start for trie, start in zip(tries, starts, strict=True) for path in trie.paths],
    )
    batch = _batch([joined], [[item for group in groups for item in group]], pad_token)
    return replace(batch, segments=segments_of(joined.ends))


def tree_batch(groups: Sequence[Group], pad_token: int) -> Batch:
    """One trie a row, for every group one row."""
    return _batch([trie_of([item.ids for item in group]) for group in groups], groups, pad_token)


def row_batch(groups: Sequence[Group], pad_token: int) -> Batch:
    """Right-padded rows, one a completion."""
    items = [item for group in groups for item in group]
    return _batch([trie_of([item.ids]) for item in items], [[item] for item in items], pad_token)


BATCHES: dict[str, Layout] = {
    "packed": Layout("tries of all prompts in one row, no padding; for segments and FlexAttention", packed_batch, packed=True),
    "tree": Layout("each prompt's completions as a trie in a row of its own; for attention masks", tree_batch),
    "rows": Layout("each completion once, in a padded row of its own: where trees do not work", row_batch, tree=False),
}


def micro_batch(prompts: Sequence[PromptPairs], parts: tuple[Batch, ...]) -> MicroBatch:
    """All pairs of whole prompts over forward passes that hold their completions in the same order."""
    sizes = [len(prompt.completions) for prompt in prompts]
    offsets = np.cumsum([0, *sizes])[:-1]

    def joined(values: Iterable[np.ndarray]) -> Tensor:
        tensor = torch.from_numpy(np.concatenate(list(values)))
        return tensor.float() if tensor.is_floating_point() else tensor  # some accelerators have no float64

    def known(name: str) -> Tensor:
        found = ((getattr(prompt, name), size) for prompt, size in zip(prompts, sizes, strict=True))
        return joined(np.full(size, np.nan) if values is None else values for values, size in found)

    same = {name: joined(getattr(prompt, name) for prompt in prompts) for name in ("p", "margin", "weight")}
    return MicroBatch(
        **same,
        parts=parts,
        chosen=joined(prompt.chosen + offset for prompt, offset in zip(prompts, offsets, strict=True)),
        rejected=joined(prompt.rejected + offset for prompt, offset in zip(prompts, offsets, strict=True)),
        pairs=joined(prompt.rows for prompt in prompts),
        reference=known("reference"),
        counts=torch.cat([part.counts for part in parts]),
        scores=known("scores"),
        prompts=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        ids=tuple(prompt.prompt_id for prompt in prompts),
    )


def _batch(tries: Sequence[Trie], groups: Sequence[Group], pad_token: int) -> Batch:
    length = max(len(trie.ids) for trie in tries)
    ids = np.full((len(tries), length), pad_token, dtype=np.int64)
    positions = np.zeros((len(tries), length), dtype=np.int64)
    ends = np.tile(np.arange(1, length + 1), (len(tries), 1))  # a row of the mask without any True gives NaN
    targets, parents, counts, last = [], [], [], []
    for row, (trie, group) in enumerate(zip(tries, groups, strict=True)):
        size = len(trie.ids)
        ids[row, :size], positions[row, :size], ends[row, :size] = trie.ids, trie.positions, trie.ends
        for item, path in zip(group, trie.paths, strict=True):
            flat = path + row * length
            targets.append(flat[item.start :])
            parents.append(flat[item.start - 1 : -1])
            counts.append(len(path) - item.start)
            last.append(flat[-1])
    # A token that several completions share is predicted once; its output counts for each of them.
    predicted, first, spans = np.unique(np.concatenate(targets), return_index=True, return_inverse=True)
    return Batch(
        input_ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        ends=torch.from_numpy(ends),
        lengths=torch.tensor([len(trie.ids) for trie in tries]),
        parents=torch.from_numpy(np.concatenate(parents)[first]),
        tokens=torch.from_numpy(ids.reshape(-1)[predicted]),
        spans=torch.from_numpy(spans.reshape(-1)),
        counts=torch.tensor(counts),
        last=torch.from_numpy(np.array(last)),
    )
