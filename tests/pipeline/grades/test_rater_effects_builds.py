"""Rater effects in whole builds: margins that become comparable, intervals that cover, what is counted and shown, real severe raters."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from panels import PANELS, covered, panel

from mmpo.pipeline import BuildOptions, build, build_pairs
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.sources import FeedbackBuilder
from mmpo.pipeline.tables import FEEDBACK, metadata


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def test_ratings_of_different_raters_become_comparable() -> None:
    """A harsh rater (-2) grades half of the answers, a mild one (+2) the other half, both share a few: the plain margins mix them up."""
    rng = np.random.default_rng(0)
    out, true = FeedbackBuilder("made"), {}
    for p in range(300):
        out.prompt(f"question {p}")
        quality = rng.normal(5, 1, 2)
        for c, q in enumerate(quality.tolist()):
            text = f"answer {c}"
            true[p, text] = q
            for rater, bias in (("harsh", -2), ("mild", 2)):
                if p < 60 or (c == p % 2) == (rater == "harsh"):
                    out.rating(out.completion(text), q + bias + float(rng.normal(0, 0.3)), rater=rater, kind="human")
    table = narrow(out.finish(), FEEDBACK)

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
    out = FeedbackBuilder("made")
    for p in range(400):
        out.prompt(f"question {p}")
        a, b, m = out.completion("a"), out.completion("b"), float(rng.normal())
        for rater, bias in (("j", 1.0), ("k", -1.0), ("l", 0.5)):
            for first, second, sign in ((a, b, 1), (b, a, -1))[: 1 if p < 60 else 2]:
                out.comparison(first, second, sign * m + bias + 0.1 * float(rng.normal()), rater=rater, kind="ai")
    found = build_pairs(narrow(out.finish(), FEEDBACK), merge_raters="rater-effects", one_order="keep")
    assert found.num_rows == 400
    assert [e["bias"] for e in metadata(found.schema)["rater_effects"].values()] == [0, 0, 0]
    assert metadata(found.schema)["position_bias"]["j/overall"]["bias"] == pytest.approx(1, abs=0.02)


def test_a_pair_that_two_reasons_leave_bare_is_lost_once(tmp_path: Path) -> None:
    """j answered q0 and q1 in one order only, the silent judge answered q0 as well: two pairs lost, one reason each."""
    rng = np.random.default_rng(0)
    lines = []
    for p in range(200):
        m = rng.normal()
        grades = [(r, sign, sign * m + 0.3 * rng.normal()) for r in ("j", "k") for sign in (1, -1)]
        grades = [("j", 1, m)] if p < 2 else grades
        grades += [("random", sign, rng.normal()) for sign in (1, -1)] if p != 1 else []
        for rater, sign, gap in grades:
            first, second = ("a", "b") if sign > 0 else ("b", "a")
            lines.append(
                f'{{"prompt":"q{p}","first":"{first}","second":"{second}","gap":{float(gap)},"rater":"{rater}","kind":"ai"}}\n'
            )
    (tmp_path / "c.jsonl").write_text("".join(lines))
    summary = build(tmp_path / "c.jsonl", tmp_path / "out", options=BuildOptions(format="jsonl", merge_raters="rater-effects"))
    assert summary["rejected"] == {"no_signal": 199, "no_pair": 2, "one_order": 2, "one_order_pair": 2}


def test_a_silent_judge_is_counted_and_shown(tmp_path: Path) -> None:
    """Two judges agree, a third answers at random; pairs that only it answered go, counted as pairs and as grades."""
    rng = np.random.default_rng(0)
    lines = []
    for p in range(200):
        m = rng.normal()
        for rater in ("j", "k", "random") if p >= 10 else ("random",):
            gap = m + 0.3 * rng.normal() if rater != "random" else rng.normal()
            lines.append(f'{{"prompt":"q{p}","first":"a","second":"b","gap":{float(gap)},"rater":"{rater}","kind":"human"}}\n')
    (tmp_path / "c.jsonl").write_text("".join(lines))
    summary = build(tmp_path / "c.jsonl", tmp_path / "out", options=BuildOptions(format="jsonl", merge_raters="rater-effects"))
    assert summary["rejected"] == {"no_signal": 200, "no_pair": 10, "no_signal_pair": 10}
    assert {name: e["signal"] for name, e in summary["rater_effects"].items()} == {"j": True, "k": True, "random": False}


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
        out = FeedbackBuilder("mqm")
        for prompt, of_prompt in rows.groupby("prompt_id"):
            out.prompt(str(prompt))
            for response, score, rater in zip(of_prompt.response, of_prompt.mqm_score, of_prompt.rater, strict=True):
                out.rating(out.completion(response), score, rater=str(rater), kind="human")
        found = metadata(build_pairs(narrow(out.finish(), FEEDBACK), merge_raters="rater-effects").schema)["rater_effects"]
        return pd.DataFrame(found).T

    whole, few = effects(frame), effects(frame[shared | drawn])
    assert whole.signal.all()
    assert few.signal.all()
    assert whole.bias.astype(float).idxmin() == few.bias.astype(float).idxmin() == "rater6"
    assert np.corrcoef(whole.bias.astype(float), few.bias.astype(float))[0, 1] > 0.9
    assert whole.scale.between(0.3, 3).all()
    assert few.scale.between(0.3, 3).all()
