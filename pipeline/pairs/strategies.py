"""Which pairs of a prompt become training pairs: the strategies, and the cap. Adding one: a function and a line in STRATEGIES.

Completions come ordered by score, best first, equal scores by the smaller id; a candidate pair is (better, worse) in that order. Every
random choice is the smallest blake2b-128 of "seed NUL chosen id NUL rejected id": it does not depend on the order of anything.
"""

from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from mmpo.pipeline.arrow import ranges

__all__ = ["STRATEGIES", "STRATIFIED_DEFAULT", "cap", "pair_hash", "stratify"]

STRATIFIED_DEFAULT = 5


def pair_hash(seed: int, chosen: str, rejected: str) -> bytes:
    """The number that a seeded choice among pairs goes by: the smallest is taken first."""
    return blake2b(f"{seed}\0{chosen}\0{rejected}".encode(), digest_size=16).digest()


def _all(starts: np.ndarray, sizes: np.ndarray, ids: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    better, worse = [], []
    for size in np.unique(sizes[sizes > 1]):
        i, j = np.triu_indices(int(size), 1)
        base = starts[sizes == size][:, None]
        better.append((base + i).ravel())
        worse.append((base + j).ravel())
    if not better:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    first, second = np.concatenate(better), np.concatenate(worse)
    order = np.lexsort((second, first))
    return first[order], second[order]


def _best_worst(starts: np.ndarray, sizes: np.ndarray, ids: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    many = sizes > 1
    return starts[many], (starts + sizes - 1)[many]


def _best_random(starts: np.ndarray, sizes: np.ndarray, ids: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    many = sizes > 1
    others = [
        min(range(start + 1, start + size), key=lambda j, best=start: pair_hash(seed, ids[best], ids[j]))
        for start, size in zip(starts[many].tolist(), sizes[many].tolist(), strict=True)
    ]
    return starts[many], np.array(others, dtype=np.int64)


def _adjacent(starts: np.ndarray, sizes: np.ndarray, ids: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    better = ranges(starts, np.maximum(sizes - 1, 0))
    return better, better + 1


Strategy = Callable[[np.ndarray, np.ndarray, list[str], int], tuple[np.ndarray, np.ndarray]]

STRATEGIES: dict[str, tuple[str, Strategy]] = {
    "all": ("every pair of a prompt's completions", _all),
    "best-worst": ("the best against the worst", _best_worst),
    "best-random": ("the best against a random other, as the binarised UltraFeedback does", _best_random),
    "adjacent": ("each completion against the next worse one", _adjacent),
    "stratified": ("a sample spread evenly over the prompt's margins (needs a cap, 5 unless given)", _all),
}


def _limit(prompt: np.ndarray, rank_keys: tuple[np.ndarray, ...], most: int) -> np.ndarray:
    """A mask that keeps, of each prompt, the `most` pairs that come first by the keys (first key decides)."""
    order = np.lexsort((*reversed(rank_keys), prompt))
    new = np.ones(len(order), dtype=bool)
    new[1:] = prompt[order][1:] != prompt[order][:-1]
    starts = np.flatnonzero(new)
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    keep = np.zeros(len(order), dtype=bool)
    keep[order[place < most]] = True
    return keep


def _hash_rank(chosen: list[str], rejected: list[str], seed: int) -> np.ndarray:
    hashes = np.array([pair_hash(seed, a, b) for a, b in zip(chosen, rejected, strict=True)], dtype="S16")
    # numpy strips trailing NULs of bytes when it compares; two hashes that differ in nothing else do not occur
    return np.argsort(np.argsort(hashes, kind="stable"), kind="stable")


def cap(prompt: np.ndarray, chosen: list[str], rejected: list[str], most: int, seed: int) -> np.ndarray:
    """A mask of shape (pairs,) that keeps at most `most` pairs a prompt, those of the smallest hashes."""
    return _limit(prompt, (_hash_rank(chosen, rejected, seed),), most)


def stratify(prompt: np.ndarray, margin: np.ndarray, chosen: list[str], rejected: list[str], most: int, seed: int) -> np.ndarray:
    """A mask that keeps at most `most` pairs a prompt, spread evenly over its margins.

    The prompt's margins, from its smallest to its largest, fall into `most` bins of equal width; bins give their pairs in turn, each
    by the smallest hash, larger margins first. Source: Kim et al. 2024 sample SHP's pairs uniformly over margins; their code then
    keeps the first five in file order, which undoes it.
    """
    if not len(prompt):
        return np.zeros(0, dtype=bool)
    least = np.full(int(prompt.max()) + 1, np.inf)
    largest = np.full(int(prompt.max()) + 1, -np.inf)
    np.minimum.at(least, prompt, margin)
    np.maximum.at(largest, prompt, margin)
    width = (largest - least)[prompt]
    bins = np.minimum((most * (margin - least[prompt]) / np.where(width > 0, width, 1)).astype(np.int64), most - 1)
    rank = _hash_rank(chosen, rejected, seed)
    order = np.lexsort((rank, bins, prompt))
    key = prompt[order] * most + bins[order]
    starts = np.flatnonzero(np.append(True, np.diff(key) != 0))
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return _limit(prompt, (turn, -bins, rank), most)
