"""Which pairs of a prompt's completions a judge compares: `--pairs`, one line each in PAIRINGS.

A pair is two positions among the prompt's completions, the smaller one first; what is shown first is decided elsewhere. Everything that
looks random is the smallest blake2b of (seed, ids), so that adding prompts or completions elsewhere changes nothing here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from mmpo.pipeline.errors import UserError, unknown_name

ALL_UP_TO = 4
"""`auto` compares all pairs of up to so many completions."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Candidates:
    """What the choice of pairs may look at. scores: the mean of the grades that a completion has, None where it has none."""

    ids: Sequence[str]
    scores: Sequence[float | None]
    seed: int
    k: int = 0


@dataclass(frozen=True)
class Pairing:
    """choose: the pairs of one prompt. count: how many those are for n completions (with k of `name:k`).

    reads_scores: the choice looks at `Candidates.scores`. needs: what is missing where it finds no pair in any prompt; "" where that
    can only be completions.
    """

    choose: Callable[[Candidates], list[Pair]]
    count: Callable[[int, int], int]
    summary: str
    takes_k: bool = False
    reads_scores: bool = False
    needs: str = ""


def digest_of(seed: int, *ids: str) -> bytes:
    """The digest by which a random choice is made: blake2b-128 of the seed and the ids, NUL between them."""
    return blake2b("\0".join([str(seed), *ids]).encode(), digest_size=16).digest()


def _every(n: int) -> list[Pair]:
    return [(i, j) for j in range(n) for i in range(j)]


def _all(given: Candidates) -> list[Pair]:
    return _every(len(given.ids))


def _chain(given: Candidates) -> list[Pair]:
    """Neighbours in the order of the grades, where every completion has one; else in a seeded order."""
    ids, scores = given.ids, given.scores
    known = [score for score in scores if score is not None]
    if len(known) == len(ids):
        order = sorted(range(len(ids)), key=lambda i: (-known[i], ids[i]))
    else:
        order = sorted(range(len(ids)), key=lambda i: digest_of(given.seed, ids[i]))
    return sorted((min(a, b), max(a, b)) for a, b in zip(order[:-1], order[1:]))


def _best_worst(given: Candidates) -> list[Pair]:
    graded = [i for i, score in enumerate(given.scores) if score is not None]
    if len(graded) < 2:
        return []
    order = sorted(graded, key=lambda i: (-(given.scores[i] or 0.0), given.ids[i]))
    return [(min(order[0], order[-1]), max(order[0], order[-1]))]


def _drawn(given: Candidates) -> list[Pair]:
    """Every pair, in a seeded order."""
    ids = given.ids
    return sorted(_every(len(ids)), key=lambda pair: digest_of(given.seed, *sorted((ids[pair[0]], ids[pair[1]]))))


def _random(given: Candidates) -> list[Pair]:
    return sorted(_drawn(given)[: given.k])


def _auto(given: Candidates) -> list[Pair]:
    n = len(given.ids)
    if n <= ALL_UP_TO:
        return _all(given)
    chain = set(_chain(given))
    rest = [pair for pair in _drawn(given) if pair not in chain]
    return sorted([*chain, *rest[:n]])


def _pairs(n: int) -> int:
    return n * (n - 1) // 2


PAIRINGS: dict[str, Pairing] = {
    "auto": Pairing(
        _auto,
        lambda n, k: _pairs(n) if n <= ALL_UP_TO else min(_pairs(n), 2 * n - 1),
        "all up to 4 completions, else chain + random:n",
        reads_scores=True,
    ),
    "all": Pairing(_all, lambda n, k: _pairs(n), "every pair"),
    "chain": Pairing(
        _chain,
        lambda n, k: max(0, n - 1),
        "neighbours by grade where all have one, else in a seeded order",
        reads_scores=True,
    ),
    "best-worst": Pairing(
        _best_worst,
        lambda n, k: min(1, n // 2),
        "the best-graded against the worst-graded; needs grades",
        reads_scores=True,
        needs="best-worst compares graded completions, and none is graded; use --pairs all or random:k",
    ),
    "random": Pairing(_random, lambda n, k: min(k, _pairs(n)), "random:k takes k pairs a prompt", takes_k=True),
}
"""The family of `--pairs`."""


def parse_pairing(text: str) -> tuple[Pairing, int]:
    """The way to choose pairs and its k. Raises UserError.

    >>> parse_pairing("random:3")[1]
    3
    """
    name, colon, number = text.partition(":")
    pairing = PAIRINGS.get(name)
    if pairing is None:
        raise unknown_name("way to choose pairs (--pairs)", name, PAIRINGS)
    if pairing.takes_k != bool(colon) or (colon and (not number.isdecimal() or int(number) < 1)):
        form = f"{name}:k with k from 1 up, for example {name}:4" if pairing.takes_k else name
        raise UserError(f"--pairs {text}: write {form}")
    return pairing, int(number or 0)
