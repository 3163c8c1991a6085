"""Rater effects in whole builds: margins that become comparable, intervals that cover, what is counted and shown, real severe raters."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from folders import write_rows
from panels import PANELS, Grade, covered, feedback, panel, rms

from mmpo.pipeline import BuildOptions, UserError, build, build_pairs
from mmpo.pipeline.tables import metadata


def test_ratings_of_different_raters_become_comparable() -> None:
    """A harsh rater (-2) grades half of the answers, a mild one (+2) the other half, both share a few: the plain margins mix them up."""
    rng = np.random.default_rng(0)
    true = {}

    def graded(p: int) -> Iterable[Grade]:
        for c, q in enumerate(rng.normal(5, 1, 2).tolist()):
            true[p, f"answer {c}"] = q
            for rater, bias in (("harsh", -2), ("mild", 2)):
                if p < 60 or (c == p % 2) == (rater == "harsh"):
                    yield rater, f"answer {c}", q + bias + float(rng.normal(0, 0.3))

    table = feedback(map(graded, range(300)), kind="human")

    def error(how: str) -> float:
        found = build_pairs(table, merge_raters=how).to_pylist()
        keys = [(int(r["prompt"][0]["content"].split()[1]), r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in found]
        return rms(np.array([r["quality_margin"] - (true[p, a] - true[p, b]) for r, (p, a, b) in zip(found, keys, strict=True)]))

    assert error("mean") > 3
    assert error("rater-effects") < 0.5
    effects = metadata(build_pairs(table, merge_raters="rater-effects").schema)["rater_effects"]
    assert effects["mild"]["bias"] - effects["harsh"]["bias"] == pytest.approx(4, abs=0.15)
    # who grades the same prompts' other answers only: a pair of one harsh and one mild grade has no rater who graded both
    assert {r["raters"] for r in build_pairs(table, merge_raters="rater-effects").to_pylist()} == {0, 2}


@pytest.mark.parametrize("how", ["mean", "rater-effects"])
@pytest.mark.parametrize("name", PANELS)
def test_intervals_cover(name: str, how: str) -> None:
    """margin ± 1.96 margin_se holds the true margin in .93 to .97 of the pairs, on seven grades; .943, .938 and .936 for two, three and
    five raters of equal normal noise, since P(|z| ≤ 1.96·√V) with V = (4 + χ²(n - 1))/(n + 3) is. And its size is that of the error."""
    noise = PANELS[name]
    share, se, error = covered(*panel(noise, len(noise)), how)
    assert 0.93 <= share <= 0.97
    assert se == pytest.approx(error, rel=0.05)


def test_a_bias_is_taken_away_once() -> None:
    """Judges of known position bias answer most pairs in both orders. What `keep` took from the other answers may not count again."""
    rng = np.random.default_rng(0)

    def answers(p: int) -> Iterable[Grade]:
        m = float(rng.normal())
        for rater, bias in (("j", 1.0), ("k", -1.0), ("l", 0.5)):
            for first, second, sign in (("a", "b", 1), ("b", "a", -1))[: 1 if p < 60 else 2]:
                yield rater, first, second, sign * m + bias + 0.1 * float(rng.normal())

    found = build_pairs(feedback(map(answers, range(400)), kind="ai"), merge_raters="rater-effects", one_order="keep")
    assert found.num_rows == 400
    assert [e["bias"] for e in metadata(found.schema)["rater_effects"].values()] == [0, 0, 0]
    assert metadata(found.schema)["position_bias"]["j/overall"]["bias"] == pytest.approx(1, abs=0.02)


def written(path: Path, answers: Iterable[tuple[int, str, str, str, float]], kind: str) -> Path:
    """JSON lines of (question, rater, shown first, shown second, gap)."""
    rows = [
        {"prompt": f"q{p}", "first": first, "second": second, "gap": float(gap), "rater": rater, "kind": kind}
        for p, rater, first, second, gap in answers
    ]
    return write_rows(path, rows)


def test_a_pair_that_two_reasons_leave_bare_is_lost_once(tmp_path: Path) -> None:
    """j answered q0 and q1 in one order only, the silent judge answered q0 as well: two pairs lost, one reason each."""
    rng = np.random.default_rng(0)
    answers = []
    for p in range(200):
        m = rng.normal()
        for rater in ("j",) if p == 1 else ("j", "random") if p == 0 else ("j", "k", "random"):
            gaps = (
                {"a": m + 0.3 * rng.normal(), "b": -m + 0.3 * rng.normal()}
                if rater != "random"
                else dict(zip("ab", rng.normal(size=2)))
            )
            orders = "a" if p < 2 and rater == "j" else "ab"
            answers += [(p, rater, first, "ba"["ab".index(first)], gaps[first]) for first in orders]
    options = BuildOptions(format="jsonl", merge_raters="rater-effects")
    summary = build(written(tmp_path / "c.jsonl", answers, "ai"), tmp_path / "out", options=options)
    assert summary["rejected"] == {"no_signal": 199, "no_pair": 2, "one_order": 2, "one_order_pair": 2}


@pytest.fixture(scope="module")
def jury(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of noise .3, .3 and 1 grade 300 pairs, a fourth answers at random and ten pairs more."""
    rng = np.random.default_rng(0)
    answers = []
    for p in range(310):
        m = rng.normal()
        gaps = {"a": m + 0.3 * rng.normal(), "b": m + 0.3 * rng.normal(), "c": m + rng.normal(), "d": rng.normal()}
        answers += [(p, rater, "x", "y", gap) for rater, gap in gaps.items() if p < 300 or rater == "d"]
    return written(tmp_path_factory.mktemp("jury") / "c.jsonl", answers, "human")


def test_weights_are_optional_and_a_silent_rater_is_counted_and_shown(jury: Path, tmp_path: Path) -> None:
    found = {}
    for weights in ("fitted", "equal"):
        options = BuildOptions(format="jsonl", merge_raters="rater-effects", rater_weights=weights)
        summary = build(jury, tmp_path / weights, options=options)
        assert summary["rejected"] == {"no_signal": 310, "no_pair": 10, "no_signal_pair": 10}
        found[weights] = summary["rater_effects"]
    assert found["fitted"]["c"]["weight"] < 0.7 < 1 < found["fitted"]["a"]["weight"]
    assert {name: (e["signal"], e["weight"]) for name, e in found["equal"].items()} == {
        "a": (True, 1), "b": (True, 1), "c": (True, 1), "d": (False, 0),
    }  # fmt: skip
    for name in "abcd":  # nothing else differs
        assert {**found["equal"][name], "weight": 0} == {**found["fitted"][name], "weight": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rater_weights": "equal"}, "only --raters rater-effects weighs raters"),
     ({"merge_raters": "rater-effects", "rater_weights": "none"}, "'fitted' or 'equal'")],
)  # fmt: skip
def test_weights_without_a_use_for_them_are_refused(jury: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(jury, tmp_path / "out", options=BuildOptions(format="jsonl", **options))


def test_real_severities_come_back_from_a_fifth_of_the_shared_grades(real_data: Path) -> None:
    """MQM grades of translations, three of eight raters each, whose means lie between -2.4 and -11.1. From a fifth of the segments with all
    three, and one rater drawn for each other translation (where plain margins compare a mild rater's grade with a severe one's), the
    biases are those of the whole."""
    frame = pd.read_parquet(real_data / "wmt_mqm_human.parquet")
    frame = frame.loc[(frame.test_set == "generalMT2023_sxs") & (frame.lp == "zh-en"), :].drop_duplicates(
        ["prompt_id", "response", "rater"]
    )
    frame = frame.sort_values(["prompt_id", "response", "rater"]).reset_index(drop=True)
    rng = np.random.default_rng(0)
    shared = frame.prompt_id.map(dict(zip(frame.prompt_id.unique(), rng.random(frame.prompt_id.nunique()) < 0.2, strict=True)))
    drawn = frame.assign(draw=rng.random(len(frame))).groupby(["prompt_id", "response"]).draw.transform("idxmin") == frame.index

    def effects(rows: pd.DataFrame) -> pd.DataFrame:
        grades = (zip(of.rater.astype(str), of.response, of.mqm_score) for _, of in rows.groupby("prompt_id"))
        found = metadata(build_pairs(feedback(grades, kind="human"), merge_raters="rater-effects").schema)["rater_effects"]
        return pd.DataFrame(found).T

    whole, few = effects(frame), effects(frame[shared | drawn])
    assert whole.signal.all()
    assert few.signal.all()
    assert whole.bias.astype(float).idxmin() == few.bias.astype(float).idxmin() == "rater6"
    assert np.corrcoef(whole.bias.astype(float), few.bias.astype(float))[0, 1] > 0.9
    assert whole.scale.between(0.3, 3).all()
    assert few.scale.between(0.3, 3).all()
