"""A prompt's completions as a trie over token ids, in one sequence: every shared token once.

Tokens lie in depth-first order, so that a token's descendants are the block right behind it. One number a token, the
column behind its last descendant, then says which tokens may see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    order, arrays, shared = _sorted_with_prefixes(sequences)
    paths: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(sequences)
    pieces, size = [], 0
    ends = np.zeros(sum(len(a) - n for a, n in zip(arrays, shared, strict=True)), dtype=np.int64)
    path = np.zeros(0, dtype=np.int64)
    for place, array, common in zip(order, arrays, shared, strict=True):
        path = np.concatenate([path[:common], np.arange(size, size + len(array) - common)])
        size += len(array) - common
        ends[path] = size  # whoever is still on the path has descendants up to here
        pieces.append(array[common:])
        paths[place] = path
    positions = np.concatenate([np.arange(n, len(a)) for a, n in zip(arrays, shared, strict=True)])
    return Trie(np.concatenate(pieces), positions, ends, paths)


def trie_size(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens `trie_of` would hold.

    >>> trie_size([[7, 8, 1, 2], [7, 8, 3], [7, 8, 1, 4]])
    6
    """
    _, arrays, shared = _sorted_with_prefixes(sequences)
    return sum(len(array) for array in arrays) - sum(shared)


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


def _sorted_with_prefixes(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[np.ndarray], list[int]]:
    """Sorted order, the sequences in it, and how many tokens each shares with the one before."""
    given = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    order = sorted(range(len(given)), key=lambda place: given[place].tolist())
    arrays = [given[place] for place in order]
    shared = [0, *(_common(a, b) for a, b in zip(arrays, arrays[1:], strict=False))]
    return order, arrays, shared


def _common(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length
