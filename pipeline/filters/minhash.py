"""Which sets may be alike, without comparing each with each: MinHash signatures cut into bands (Broder 1997; Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, §3.4). What shares a band is compared exactly afterwards, so that bands decide what is found and never
what is called alike.
"""

import numpy as np

from mmpo.pipeline.filters.words import NumberSets

PERMUTATIONS = 128
"""At most so many numbers of a signature."""
LEAST_FOUND = 0.99
"""The share of pairs at the threshold that must share a band, by expectation."""
_BLOCK = 1 << 18
_FOLD = np.uint64(0x9E3779B97F4A7C15)


def bands_for(similarity: float) -> tuple[int, int]:
    """How many bands of how many numbers find nearly all pairs of at least this Jaccard similarity: the narrowest net that does.

    A pair of similarity s shares one of b bands of r numbers with probability 1 − (1 − s^r)^b.

    >>> bands_for(0.8), bands_for(0.5)
    ((21, 6), (42, 3))
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= LEAST_FOUND:
            return bands, rows
    return PERMUTATIONS, 1


def bands_of(sets: NumberSets, similarity: float) -> np.ndarray:
    """The bands of each set's signature, 64 bits each, shape (sets, bands); those of empty sets are 0 and mean nothing.

    Two sets of Jaccard similarity s have each number of their signatures in common with probability s: it is the smallest of a x + b
    (mod 2^32) over the members x, with an odd a and a b of its own for every number.
    """
    count, rows = bands_for(similarity)
    random = np.random.default_rng(0)
    factors = random.integers(0, 1 << 32, count * rows, dtype=np.uint32) | np.uint32(1)
    terms = random.integers(0, 1 << 32, count * rows, dtype=np.uint32)
    found = np.zeros((count, len(sets.offsets) - 1), dtype=np.uint64)
    held = np.flatnonzero(np.diff(sets.offsets))
    cuts = [*np.flatnonzero(np.diff(sets.offsets[held] // _BLOCK)) + 1, len(held)]
    for low, high in zip([0, *cuts[:-1]], cuts):  # as much at a time as a core keeps at hand
        some = held[low:high]
        if not len(some):
            continue
        starts = sets.offsets[some]
        values = sets.values[starts[0] : sets.offsets[some[-1] + 1]]
        moved = np.empty_like(values)
        for number in range(count * rows):
            np.multiply(values, factors[number], out=moved)
            moved += terms[number]
            band = found[number // rows]
            band[some] = (band[some] + np.minimum.reduceat(moved, starts - starts[0]) + np.uint64(1)) * _FOLD
    return found.T ^ (found.T >> np.uint64(31))
