"""Ties, votes, thresholds and ranks are those of exact arithmetic, whatever the raters are called and however grades are cut and scaled."""

from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import permutations
from math import floor
from pathlib import Path
from statistics import median

import pyarrow as pa
import pytest
from folders import write_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmpo.pipeline import BuildOptions, build, build_pairs, load_pairs, validate
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.grades.normalise import NORMALISATIONS
from mmpo.pipeline.sources import FeedbackBuilder

Grade = tuple[str, str, Fraction]
"""Completion, rater, grade."""
LOW, HIGH = Fraction(-13), Fraction(17)
NONE = Fraction(1, 10**40)
"""What is left of 0 where roots and logarithms were taken to 60 digits."""
MERGES: dict[str, Callable[[Sequence[Fraction]], Fraction]] = {"mean": lambda values: sum(values) / len(values), "median": median}


@st.composite
def panels(draw: st.DrawFn) -> list[Grade]:
    """Grades in tenths or thirds, by up to five raters with repeats and gaps, of two completions or more; many true ties."""
    unit = draw(st.sampled_from([Fraction(1, 10), Fraction(1, 3), Fraction(1)]))
    grade = st.integers(int(LOW / unit), int(HIGH / unit)).map(lambda n: n * unit)
    values = draw(st.lists(grade, min_size=1, max_size=4))
    rows = st.tuples(st.sampled_from("xyz"), st.sampled_from("abcde"), st.sampled_from(values))
    return [*draw(st.lists(rows, min_size=1, max_size=16)), ("x", "a", values[0]), ("y", "a", values[-1])]


def ranked(values: dict[str, Fraction]) -> dict[str, Fraction]:
    """(average rank - 1)/(n - 1), by hand: the share of others below, equals counting half."""
    others = max(len(values) - 1, 1)
    below = {a: sum(1 if y < x else Fraction(y == x, 2) for b, y in values.items() if b != a) for a, x in values.items()}
    return {name: Fraction(count) / others if len(values) > 1 else Fraction(1, 2) for name, count in below.items()}


def standardised(values: dict[str, Fraction]) -> dict[str, Fraction]:
    """(value - mean)/standard deviation, the root to 60 digits."""
    mean = sum(values.values()) / len(values)
    deviation = root(sum((value - mean) ** 2 for value in values.values()) / len(values)) or Fraction(1)
    return {name: (value - mean) / deviation for name, value in values.items()}


def root(value: Fraction) -> Fraction:
    with localcontext(prec=60):
        return Fraction((Decimal(value.numerator) / Decimal(value.denominator)).sqrt())


Within = Callable[[dict[str, Fraction]], dict[str, Fraction]]
WITHIN: dict[str, Within] = {"rank": ranked, "prompt-zscore": standardised}


def exact(
    grades: Sequence[Grade], merge: str, scale: Fraction = Fraction(1), within: Within | None = None
) -> dict[tuple[str, str], tuple[Fraction, int, int]]:
    """By (first, second), both ways: first's margin, the raters that prefer it (ties count half), the raters of both."""
    of_rater: dict[str, dict[str, Fraction]] = {}
    for text, rater in {(text, rater) for text, rater, _ in grades}:
        given = [value for of, by, value in grades if (of, by) == (text, rater)]
        of_rater.setdefault(text, {})[rater] = sum(given) / len(given) / scale
    score = {text: MERGES[merge](list(by.values())) for text, by in of_rater.items()}
    if within:
        score = within(score)
        for rater in {rater for _, rater, _ in grades}:
            own = within({text: by[rater] for text, by in of_rater.items() if rater in by})
            of_rater = {text: by | ({rater: own[text]} if text in own else {}) for text, by in of_rater.items()}
    result = {}
    for first, second in permutations(sorted(score), 2):
        both = of_rater[first].keys() & of_rater[second].keys()
        gaps = [of_rater[first][rater] - of_rater[second][rater] for rater in both]
        votes = floor(sum(1 if gap > NONE else Fraction(abs(gap) <= NONE, 2) for gap in gaps))
        margin = score[first] - score[second]
        result[first, second] = (margin if abs(margin) > NONE else Fraction(0), votes, len(both))
    return result


def table(grades: Sequence[Grade], low: Fraction | None = LOW, high: Fraction | None = HIGH) -> pa.Table:
    out = FeedbackBuilder("made")
    out.prompt("question")
    bounds = {"low": None if low is None else float(low), "high": None if high is None else float(high)}
    for text, rater, value in grades:
        out.rating(out.completion(text), float(value), rater=rater, **bounds)
    return narrow(out.finish())


def test_raters_whose_steps_differ_make_no_gap_of_a_tie() -> None:
    """999 2/3 of a rater who gave 1000 besides is rounded to 1e-9, alone to 1e-10; a division by the prompt's deviation follows."""
    third = Fraction(1000) - Fraction(1, 3)
    found = pairs(
        build_pairs(
            table([("x", "a", third), ("y", "a", Fraction(1000)), ("z", "b", third)], None, None), normalise="prompt-zscore"
        )
    )
    assert {pair: margin for pair, (margin, *_) in found.items() if "y" not in pair} == {("x", "z"): 0.0}
    assert found["y", "x"][0] == found["y", "z"][0] == pytest.approx(3 / 2**0.5)


def pairs(made: pa.Table) -> dict[tuple[str, str], tuple[float, int, int]]:
    """By (chosen, rejected): margin, preferring, raters."""
    return {
        (row["chosen"][0]["content"], row["rejected"][0]["content"]): (row["quality_margin"], row["preferring"], row["raters"])
        for row in made.to_pylist()
    }


def differences(found: dict, wanted: dict) -> list[tuple[str, str]]:
    """The pairs whose tie, order, votes, or margin but for rounding, are not the wanted ones."""
    return [
        pair
        for pair, (margin, *votes) in found.items()
        if (margin == 0, votes) != (wanted[pair][0] == 0, list(wanted[pair][1:]))
        or margin != pytest.approx(float(wanted[pair][0]), abs=1e-8)
    ]


@pytest.mark.slow
@given(panels(), st.sampled_from(sorted(MERGES)), st.sampled_from(["none", "minmax", "unbounded"]))
@settings(max_examples=150, deadline=None)
def test_ties_and_votes_are_those_of_exact_arithmetic(grades: list[Grade], merge: str, normalise: str) -> None:
    if normalise == "unbounded":
        found, scale = build_pairs(table(grades, None, None), merge_raters=merge), Fraction(1)
    else:
        scale = HIGH - LOW if normalise == "minmax" else Fraction(1)
        found = build_pairs(table(grades), merge_raters=merge, normalise=normalise)
    made, wanted = pairs(found), exact(grades, merge, scale)
    assert differences(made, wanted) == []
    assert 2 * len(made) == len(wanted)


def transformed(grades: Sequence[Grade], normalise: str, low: Fraction, high: Fraction) -> list[Grade]:
    """The grades normalised, to 60 digits where they are not exact."""

    def decimal(value: Fraction) -> Decimal:
        return Decimal(value.numerator) / Decimal(value.denominator)

    def moments(rater: str) -> tuple[Fraction, Fraction]:
        values = [value for _, by, value in grades if by == rater]
        mean = sum(values) / len(values)
        return mean, root(sum((value - mean) ** 2 for value in values) / len(values)) or Fraction(1)

    with localcontext(prec=60):
        of = {rater: moments(rater) for rater in {rater for _, rater, _ in grades}}
        by_name: dict[str, Callable[[str, Fraction], Fraction]] = {
            "minmax": lambda rater, value: (value - low) / (high - low),
            "zscore": lambda rater, value: (value - of[rater][0]) / of[rater][1],
            "log": lambda rater, value: Fraction(decimal(value).ln()),
        }
        change = by_name.get(normalise, lambda rater, value: value)
        return [(text, rater, change(rater, value)) for text, rater, value in grades]


@pytest.mark.slow
@given(
    panels(),
    st.sampled_from([20, 10**3, 10**6, 10**9, 10**12]),
    st.sampled_from(sorted(MERGES)),
    st.sampled_from(sorted(NORMALISATIONS)),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_scale_is_too_far_from_0(grades: list[Grade], offset: int, merge: str, normalise: str, scaled: bool) -> None:
    """Decimals, any distance that leaves them digits; grades that never end, such as thirds, or without a scale, up to a million."""
    assume(offset <= 10**6 or (scaled and all(value * 10 % 1 == 0 for *_, value in grades)))
    grades, bounds = [(text, rater, value + offset) for text, rater, value in grades], (LOW + offset, HIGH + offset)
    assume(scaled or normalise != "minmax")
    made = table(grades, *(bounds if scaled else (None, None)))
    found = pairs(build_pairs(made, merge_raters=merge, normalise=normalise))
    wanted = exact(transformed(grades, normalise, *bounds), merge, within=WITHIN.get(normalise))
    unit = Fraction(1, offset) if normalise == "log" else Fraction(1)
    step = offset * (1e-9 if normalise == "prompt-zscore" else 2e-14)  # of the scores, divided by how far they lie apart
    for pair, (margin, *votes) in found.items():
        exactly, *of = wanted[pair]
        assume(
            exactly == 0 or abs(exactly) > unit / 10**4
        )  # less may be below the step: a tie, and counted as one of unequal grades
        assert ((margin == 0), votes) == (exactly == 0, of)
        assert margin == pytest.approx(float(exactly), abs=float(unit) * max(1e-6, step))


@pytest.mark.slow
@given(panels(), st.permutations("abcde"), st.randoms(use_true_random=False), st.sampled_from(["none", "minmax", "rank"]))
@settings(max_examples=100, deadline=None)
def test_names_order_repeats_shifts_and_units_change_nothing(grades: list[Grade], names, shuffler, normalise: str) -> None:
    whole = pairs(build_pairs(table(grades), normalise=normalise))
    renamed = [(text, dict(zip("abcde", names, strict=True))[rater], value) for text, rater, value in grades]
    shuffled = shuffler.sample(grades, len(grades)) * 3  # every grade given three times
    shifted = [(text, rater, value + HIGH) for text, rater, value in grades]
    others = [table(renamed), table(shuffled), table(shifted, LOW + HIGH, HIGH + HIGH)]
    if normalise == "minmax":
        others.append(table([(text, rater, value * 7 / 3) for text, rater, value in grades], LOW * 7 / 3, HIGH * 7 / 3))
    for other in others:
        assert differences(pairs(build_pairs(other, normalise=normalise)), whole) == []


@given(panels(), st.permutations("abc"), st.sampled_from(["mean", "median"]))
@settings(max_examples=60, deadline=None)
def test_comparisons_tie_as_in_exact_arithmetic(grades: list[Grade], names, merge: str) -> None:
    """Each grade is taken for a gap of x over y, shown in either order by turns."""
    out, given_gaps = FeedbackBuilder("made"), {}
    out.prompt("question")
    for i, (_, rater, value) in enumerate(grades):
        sides, sign = ((out.completion("x"), out.completion("y")), 1) if i % 2 else ((out.completion("y"), out.completion("x")), -1)
        out.comparison(*sides, float(sign * value), rater=rater, limit=float(HIGH), kind="human")
        given_gaps.setdefault((rater, i % 2), []).append(value)
    one_order = {key: sum(values) / len(values) for key, values in given_gaps.items()}
    raters = {rater: [one_order[key] for key in one_order if key[0] == rater] for rater, _ in one_order}
    gap = MERGES[merge]([sum(orders) / len(orders) for orders in raters.values()])
    (((better, _), (margin, *_)),) = pairs(build_pairs(narrow(out.finish()), merge_raters=merge)).items()
    assert (margin == 0) == (gap == 0)
    assert margin == pytest.approx(float(gap if better == "x" else -gap), abs=1e-10)


@pytest.mark.parametrize(
    ("rows", "options", "wanted"),
    [
        pytest.param({"apple": {"r": [7]}, "pear": {"r": [7, 7, 7]}}, {"scale": (1, 10)}, ("", 0.0, 0, 1), id="repeated"),
        pytest.param(
            {"apple": {"a": [-12.3], "b": [-0.3], "c": [-6.3]}, "pear": {"a": [-6.3], "b": [-0.3], "c": [-12.3]}},
            {}, ("", 0.0, 1, 3), id="unbounded",
        ),
        pytest.param(
            {"apple": {"a": [1], "b": [4], "c": [1]}, "pear": {"a": [1], "b": [1], "c": [1]}},
            {"scale": (1, 5), "min_margin": 1.0}, ("apple", 1.0, 2, 3), id="least margin",
        ),
        pytest.param(
            {"apple": {"a": [0.1], "b": [0.5]}, "pear": {"a": [0.2], "b": [0.1]}},
            {"scale": (0, 1), "min_margin": 0.15}, ("apple", 0.15, 1, 2), id="least margin of decimals",
        ),
        pytest.param(
            {"apple": {"a": [1000000.1], "b": [1000000.3]}, "pear": {"a": [1000000.2], "b": [1000000.2]}},
            {"scale": (1000000, 1000001)}, ("", 0.0, 1, 2), id="a scale far from 0",
        ),
        pytest.param(
            {text: {rater: [1000000 + tenths / 10] for rater, tenths in zip("abc", of, strict=True)}
             for text, of in {"apple": (4, 0, 9), "pear": (9, 2, 2)}.items()},
            {"scale": (1000000, 1000001), "normalise": "minmax"}, ("", 0.0, 2, 3), id="a scale far from 0, moved to 0",
        ),
    ],
)  # fmt: skip
def test_cases_through_files_cut_anywhere(rows: dict, options: dict, wanted: tuple, tmp_path: Path) -> None:
    lines = [
        {"prompt": "Name a fruit.", "completion": text, "score": score, "rater": rater}
        for text, raters in rows.items()
        for rater, scores in raters.items()
        for score in scores
    ]
    for cut in (0, 1, len(lines) // 2):
        parts = [write_rows(tmp_path / f"{cut}-{i}.jsonl", part) for i, part in enumerate((lines[:cut], lines[cut:])) if part]
        build(parts, tmp_path / f"out-{cut}", options=BuildOptions(format="jsonl", kind="human", ties="keep", **options))
        ((better, _), found) = next(iter(pairs(load_pairs(tmp_path / f"out-{cut}")).items()))
        assert (better if found[0] else "", *found) == wanted


def test_ranks_of_raters_whose_means_tie_are_equal() -> None:
    """Scores 2, 2 and 1 (means of thirds): ranks ¾, ¾, 0, so the tie stays one and the others are .75 better."""
    thirds = {"x": (1, 2, 3), "y": (3, 1, 2), "z": (1, 1, 1)}
    grades = [
        (text, rater, Fraction(value, 10)) for text, values in thirds.items() for rater, value in zip("abc", values, strict=True)
    ]
    found = pairs(build_pairs(table(grades), normalise="rank"))
    assert {tuple(sorted(pair)): margin for pair, (margin, *_) in found.items()} == {
        ("x", "y"): 0,
        ("x", "z"): 0.75,
        ("y", "z"): 0.75,
    }


@pytest.mark.parametrize("merge", ["mean", "median"])
def test_ranks_are_rounded_to_the_step(merge: str) -> None:
    """Eight completions, ranks of sevenths: 1/7 is .142857142857 to the step of 1e-12."""
    feedback = table([(f"c{i}", "a", Fraction(i)) for i in range(8)])
    found = build_pairs(feedback, normalise="rank", merge_raters=merge)
    scores = {*found["score_chosen"].to_pylist(), *found["score_rejected"].to_pylist()}
    assert scores == {round(i / 7, 12) for i in range(8)}


@pytest.mark.parametrize(("gap", "count"), [(0.0, 0), (1e-13, 1), (1e-11, 0)])
def test_unequal_grades_that_become_equal_are_counted(gap: float, count: int, tmp_path: Path) -> None:
    """The step of a scale of width 4 is 1e-12."""
    rows = [{"prompt": "q", "completion": text, "score": score} for text, score in (("a", 3.0), ("b", 3.0 + gap), ("c", 1.0))]
    summary = build(write_rows(tmp_path / "g.jsonl", rows), tmp_path / "out", options=BuildOptions(format="jsonl", scale=(1, 5)))
    assert summary["rounded_ties"] == count


@pytest.mark.parametrize("normalise", ["none", "minmax", "zscore"])
def test_equal_differences_of_scores_are_one_margin(normalise: str, tmp_path: Path) -> None:
    """4 − 11/3 and 11/3 − 10/3 are a third each: scores that were rounded first would make .333333333333 and …334 of them."""
    grades = [("apple", (4, 4, 4)), ("pear", (3, 4, 4)), ("plum", (3, 4, 3))]
    rows = [
        {"prompt": "Q", "completion": text, "rater": rater, "score": score}
        for text, scores in grades
        for rater, score in zip("xyz", scores, strict=True)
    ]
    options = BuildOptions("jsonl", scale=(1, 5), normalise=normalise, strategy="adjacent", split=(1, 0, 0))
    build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", options=options)
    margins = load_pairs(tmp_path / "out")["quality_margin"].to_pylist()
    assert len(margins) == 2 and (normalise == "zscore" or len(set(margins)) == 1)
    assert {"pass"} <= {check["status"] for check in validate(tmp_path / "out")["checks"]} <= {"pass", "unknown", "warn"}
