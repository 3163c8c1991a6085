"""Which pairs are asked: counts that hold, choices that do not depend on order, additions that disturb nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.pairings import PAIRINGS, Candidates, parse_pairing
from mmpo.pipeline.errors import UserError

ids = st.lists(st.text("0123456789abcdef", min_size=4, max_size=4), unique=True, min_size=0, max_size=9)
ways = st.sampled_from(["auto", "all", "chain", "best-worst", "random:1", "random:3", "random:50"])


def named(way: str, names: list[str], scores: list[float | None] | None = None, seed: int = 0) -> set[frozenset[str]]:
    pairing, k = parse_pairing(way)
    pairs = pairing.choose(Candidates(names, scores or [None] * len(names), seed, k))
    assert all(0 <= i < j < len(names) for i, j in pairs) and len(set(pairs)) == len(pairs)
    return {frozenset((names[i], names[j])) for i, j in pairs}


@given(ways, ids, st.randoms())
def test_choices_do_not_depend_on_the_order_of_completions(way: str, names: list[str], random: object) -> None:
    scores = {name: float(int(name, 16) % 5) for name in names}
    chosen = named(way, names, [scores[name] for name in names])
    shuffled = sorted(names, key=lambda name: name[::-1])
    assert named(way, shuffled, [scores[name] for name in shuffled]) == chosen


@given(ways, ids)
def test_the_count_is_what_is_chosen(way: str, names: list[str]) -> None:
    pairing, k = parse_pairing(way)
    assert len(named(way, names, [float(i) for i in range(len(names))])) == pairing.count(len(names), k)


@given(ids)
def test_a_chain_connects_all_and_auto_holds_it(names: list[str]) -> None:
    chain = named("chain", names)
    assert len(chain) == max(0, len(names) - 1)
    groups = {name: name for name in names}

    def root(name: str) -> str:
        return name if groups[name] == name else root(groups[name])

    for a, b in map(sorted, chain):
        groups[root(a)] = root(b)
    assert len({root(name) for name in names}) == min(1, len(names))
    if len(names) > 4:
        assert chain <= named("auto", names)
    else:
        assert named("auto", names) == named("all", names)


def test_a_chain_follows_the_grades_where_all_have_one() -> None:
    names, scores = ["a", "b", "c", "d"], [1.0, 9.0, 5.0, 3.0]
    assert named("chain", names, scores) == {frozenset("bc"), frozenset("cd"), frozenset("da")}
    assert named("best-worst", names, scores) == {frozenset("ab")}
    assert named("best-worst", names, [None, 2.0, None, 1.0]) == {frozenset("bd")}
    assert named("best-worst", names, [None, 2.0, None, None]) == set()


def test_the_seed_changes_what_is_drawn() -> None:
    names = [f"{i:04x}" for i in range(9)]
    assert len({frozenset(named("random:5", names, seed=seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("way", ["some", "random", "random:0", "random:x", "all:3", ""])
def test_unknown_ways(way: str) -> None:
    with pytest.raises(UserError, match="pairs"):
        parse_pairing(way)


def test_every_way_says_what_it_does() -> None:
    assert all(pairing.summary for pairing in PAIRINGS.values())
