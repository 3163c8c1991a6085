"""What is asked: which pairs; families are tables, a new member is one entry; a reply is parsed once, then taken from the journal."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.client import Answer, Choice, Journal, Token
from mmpo.annotate.judge import MODES, Capabilities, Judge, JudgeOptions, Questions, Reading, reading
from mmpo.annotate.judge.questions import KnownReplies, usable
from mmpo.annotate.judge.reading import Grade, dumps, loads
from mmpo.annotate.pairings import PAIRINGS, Candidates, Pairing, parse_pairing
from mmpo.annotate.replies import REPLIES, ParsedReply, ReplyFormat
from mmpo.annotate.rows import FeedbackRow
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
    assert all(pairing.summary for pairing in PAIRINGS.values())


ROW = FeedbackRow("0" * 32, [{"role": "user", "content": "?"}], ["a", "b", "c"], ["x", "y", "z"], [None] * 3)


def asker(**options: Any) -> Questions:
    """Of these options, also of members that stand in no table yet when the options are declared."""
    return Questions(Judge("m"), cast(Any, SimpleNamespace(**{**vars(JudgeOptions()), **options})), Capabilities())


def test_a_new_member_of_each_family_is_asked_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first_only = replace(MODES["pointwise"], orders=lambda row, options: iter([(0,)]), count=lambda n, options: 1)
    stars = ReplyFormat(lambda text, scale, names: ParsedReply({"grade": float(text.count("*"))}, {}, ""), "stars", "one")
    monkeypatch.setitem(MODES, "first-only", first_only)
    monkeypatch.setitem(REPLIES, "stars", stars)
    monkeypatch.setitem(PAIRINGS, "ends", Pairing(lambda given: [(0, len(given.ids) - 1)], lambda n, k: 1, "first and last"))
    for options, count in (({"mode": "first-only"}, 1), ({"pairs": "ends"}, 2)):
        one = asker(reply="stars", **options)
        posed = list(one.of(ROW))
        assert len(posed) == one.count([3]) == count
        answer = one.checked(posed[0].requests[0], Answer((Choice("***"),), 1, 1, 0.0))
        assert isinstance(answer, Answer) and answer.reading
        [grade] = one.grades(posed[0], loads(answer.reading[1]))[0]
        assert (grade.value, grade.second is None) == (3.0, "mode" in options)


@pytest.mark.parametrize(("mode", "reply"), list(product(MODES, REPLIES)))
def test_a_mode_takes_the_formats_that_grade_what_it_shows_and_refuses_the_others(mode: str, reply: str) -> None:
    if REPLIES[reply].grades not in MODES[mode].takes:
        with pytest.raises(UserError, match=f"--reply {reply} does not fit --mode {mode}; it is for "):
            asker(mode=mode, reply=reply)
        return
    for rubrics in (("overall",), ("overall", "honesty")):
        questions = asker(mode=mode, reply=reply, rubrics=rubrics)
        posed = list(questions.of(ROW))
        assert sum(len(one.requests) for one in posed) == questions.count([3]) > 0
        for one in posed:
            reader = questions.reader(one.question)
            assert len(reader.names) == len(set(reader.names)) > 0 and {rubric.name for rubric in one.question.rubrics} <= set(
                rubrics
            )


REQUESTS = 6 * 3 * 2


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many replies each format has parsed."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        parse = REPLIES[name].parse

        def counted(*arguments: Any) -> Any:
            counts[name] += 1
            return parse(*arguments)

        return counted

    for name in list(REPLIES):
        monkeypatch.setitem(REPLIES, name, replace(REPLIES[name], parse=counting(name)))
    return counts


def test_a_second_run_parses_nothing_and_another_reader_everything(
    parsed: Counter[str], judging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = judging({"faults": [{"kind": "unparsable", "contains": "Question 1?"}]})
    first = job.judge()
    assert parsed == {"grade": REQUESTS} and sum(first["judges"][0]["failed"].values()) == 6
    grades, before = job.comparisons(), job.count("answered")
    job.server.plan({"faults": [{"kind": "refusal"}]})  # of the six that are asked again there is nothing to parse
    for newer, expected in ((0, 0), (1, REQUESTS - 6), (0, 0)):
        parsed.clear()
        monkeypatch.setattr(reading, "VERSION", reading.VERSION + newer)
        again = job.judge()
        assert parsed.total() == expected and job.comparisons() == grades
        assert again["judges"][0]["answered"] == REQUESTS - 6
    assert job.count("answered") - before <= 3 * 6


def test_readings_are_kept_by_what_they_depend_on(parsed: Counter[str], tmp_path: Path) -> None:
    row = FeedbackRow("p", [{"role": "user", "content": "?"}], ["a", "b"], ["x", "y"], [None, None])
    first, path = asker(), tmp_path / "journal.sqlite"
    requests = [request for posed in first.of(row) for request in posed.requests]
    tokens = (Token("C", (("C", -0.1), ("D", -3.0))),)
    outcomes = [first.checked(one, Answer((Choice("C", "stop", tokens),), 1, 1, 0.0)) for one in requests]
    outcomes[1] = first.checked(requests[1], Answer((Choice("no grade"),), 1, 1, 0.0))

    def read(how: Questions, expected: int, *, read_only: bool = False) -> KnownReplies:
        parsed.clear()
        with Journal(path, read_only=read_only) as journal:
            found = how.known(requests, journal)
        assert parsed.total() == expected
        return found

    with Journal(path) as journal:
        journal.put_all([("m", (one.key, outcome, 0.0)) for one, outcome in zip(requests, outcomes)])
    kept = read(first, 0)
    assert usable(kept.replies[requests[0].key]) and kept.failures[requests[1].key].reason == "no_verdict"
    # A threshold, a format: the raw replies are read again, answers and failures, and that is kept.
    for how in (asker(min_mass=0.99), asker(reply="double-bracket")):
        for expected in (2, 0):
            assert not usable(read(how, expected).replies[requests[0].key])
    assert read(first, 2).replies == kept.replies == read(first, 0).replies
    # A version without readings puts another reply there, or has made the whole journal: what was read before is not taken for it.
    raw = Answer((Choice("A"),), 1, 1, 0.0).dumps()
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("UPDATE answers SET reply = ?, at = at + 1 WHERE key = ?", (raw, requests[0].key))
    [again] = read(first, 1).replies[requests[0].key]
    assert isinstance(again, Reading) and again.grades == {"grade": Grade(3.0, None, None)}
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("DROP TABLE readings")
    looked, once_more = read(first, 2, read_only=True), read(first, 2, read_only=True)
    assert looked.replies == once_more.replies == read(first, 2).replies == read(first, 0).replies


def test_an_answer_that_was_read_in_a_thought_is_asked_again(tmp_path: Path) -> None:
    """An earlier version took the first token of an empty reply for its grade, and kept the reply as an answer."""
    row = FeedbackRow("p", [{"role": "user", "content": "?"}], ["a", "b"], ["x", "y"], [None, None])
    judge = asker()
    request, other = (request for posed in judge.of(row) for request in posed.requests)
    thought = Answer((Choice("", "length", (Token("A", (("A", -0.1), ("B", -3.0))),)),), 1, 1, 0.0, (b"older", b"[]"))
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.put_all([("m", (request.key, thought, 0.0))])
        found = judge.known([request, other], journal).replies
    assert list(found) == [request.key] and not usable(found[request.key])


numbers = st.floats(allow_nan=False, allow_infinity=False)
grades = st.builds(Grade, numbers, st.none() | numbers, st.none() | numbers, st.none() | st.lists(numbers).map(tuple))
words = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(words | st.builds(Reading, st.dictionaries(words, grades), words, words)))
def test_what_was_read_comes_back_from_the_journal_as_it_was(replies: list[str | Reading]) -> None:
    assert loads(dumps(replies)) == replies
