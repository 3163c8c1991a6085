"""Which pairs of a prompt's completions: `--strategy`, and how a prompt with too many is cut down.

Completions come ordered by score, best first, equal scores by the smaller id; a candidate pair is (better, worse) in that order. Every
random choice is the smallest blake2b-128 of "seed NUL chosen id NUL rejected id": it does not depend on the order of anything.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import ranges
from mmpo.pipeline.grades.aggregate import places, runs


def pair_hash(seed: int, chosen: str, rejected: str) -> bytes:
    """The number that a seeded choice among pairs goes by: the smallest is taken first."""
    return blake2b(f"{seed}\0{chosen}\0{rejected}".encode(), digest_size=16).digest()


def all_pairs(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a prompt's completions, sorted: positions of the better and of the worse one, shape (pairs,) each.

    starts, sizes: first position and number of each prompt's completions, shape (prompts,).
    """
    at = ranges(starts, sizes)
    after = np.repeat(starts + sizes, sizes) - at - 1
    return np.repeat(at, after), ranges(at + 1, after)


def _best_worst(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    many = sizes > 1
    return starts[many], (starts + sizes - 1)[many]


def _best_random(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    many, names = sizes > 1, ids.to_pylist()
    others = [
        min(range(start + 1, start + size), key=lambda j, best=start: pair_hash(seed, names[best], names[j]))
        for start, size in zip(starts[many].tolist(), sizes[many].tolist(), strict=True)
    ]
    return starts[many], np.array(others, dtype=np.int64)


def _adjacent(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    better = ranges(starts, np.maximum(sizes - 1, 0))
    return better, better + 1


def _first(prompt: np.ndarray, most: int, *keys: np.ndarray) -> np.ndarray:
    """A mask that keeps, of each prompt, the `most` pairs that come first by the keys (the first key decides)."""
    order = np.lexsort((*reversed(keys), prompt))
    keep = np.zeros(len(order), dtype=bool)
    keep[order[places(*runs(prompt[order])) < most]] = True
    return keep


def _by_hash(prompt: np.ndarray, margin: np.ndarray, rank: np.ndarray, most: int) -> np.ndarray:
    """At most `most` pairs per prompt, those of the smallest hashes."""
    return _first(prompt, most, rank)


def _stratify(prompt: np.ndarray, margin: np.ndarray, rank: np.ndarray, most: int) -> np.ndarray:
    """At most `most` pairs per prompt, spread evenly over its margins.

    The prompt's margins, from its smallest to its largest, fall into `most` bins of equal width; bins give their pairs in turn, each
    by the smallest hash, larger margins first. Source: Kim et al. 2024 sample SHP's pairs uniformly over margins; their code then
    keeps the first five in file order, which undoes it.
    """
    least = np.full(int(prompt.max(initial=0)) + 1, np.inf)
    largest = np.full(len(least), -np.inf)
    np.minimum.at(least, prompt, margin)
    np.maximum.at(largest, prompt, margin)
    width = (largest - least)[prompt]
    place = np.round(
        most * (margin - least[prompt]) / np.where(width > 0, width, 1), 9
    )  # a margin on a bin's edge is in the upper bin
    bins = np.minimum(place.astype(np.int64), most - 1)
    order = np.lexsort((rank, bins, prompt))
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = places(*runs(prompt[order], bins[order]))
    return _first(prompt, most, turn, -bins, rank)


class Strategy(NamedTuple):
    """pairs: (first positions, numbers, ids of completions, seed) → positions of better and worse, as in `all_pairs`.

    capped: (prompt, margin, rank of the hash, most) → mask of the pairs to keep where a prompt has more than `most`; most: the cap where
    none is given. All arrays of shape (pairs,).
    """

    summary: str
    pairs: Callable[[np.ndarray, np.ndarray, pa.Array, int], tuple[np.ndarray, np.ndarray]]
    capped: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray] = _by_hash
    most: int | None = None

    @property
    def every_pair(self) -> bool:
        """Whether all pairs are candidates: then no score is needed, and the pairs may as well be given, as comparisons are."""
        return self.pairs is all_pairs


STRATEGIES: dict[str, Strategy] = {
    "all": Strategy("every pair of a prompt's completions", all_pairs),
    "best-worst": Strategy("the best against the worst", _best_worst),
    "best-random": Strategy("the best against a random other, as the binarised UltraFeedback does", _best_random),
    "adjacent": Strategy("each completion against the next worse one", _adjacent),
    "stratified": Strategy(
        "a sample spread evenly over the prompt's margins (needs a cap, 5 unless given)", all_pairs, _stratify, 5
    ),
}
"""What `--strategy` may be."""
