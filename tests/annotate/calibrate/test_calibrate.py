"""`mmpo calibrate` from FEEDBACK to FEEDBACK and pairs: what it finds, what it writes, what it refuses."""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from calibration_cases import rows_of, world
from command import refused
from folders import write_rows
from threadpoolctl import threadpool_info, threadpool_limits

from mmpo.annotate import calibrate
from mmpo.annotate.calibrate import sentences
from mmpo.annotate.calibrate.maps import MAPS
from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, UserError, build, load_feedback, load_pairs

ROOT = Path(__file__).resolve().parents[3]
QUICK: dict[str, Any] = {"bootstrap": 20, "method": "ordinal-logit", "length": "off"}


@pytest.fixture
def judged(joined: Callable[..., Path]) -> Path:
    """A judge of 600 pairs in both orders, two people on the first 120."""
    judge, people = rows_of(world(5), 120)
    return joined((judge, (-9, 9), "ai"), (people, (-3, 3), "human"))


def test_a_judges_margins_come_out_in_peoples_units(judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", str(judged), "--out", str(tmp_path / "out"), "--bootstrap", "20", "--json"]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)["graders"]["judge"]
    assert figures["pairs"] == 600 and figures["human_pairs"] == 120 and figures["human_grades"] == 240
    assert figures["bias"] == pytest.approx(0.5) and figures["bias_se"] == pytest.approx(0, abs=1e-6)
    assert figures["bias_pairs"] == {"both_orders": 600, "one_order": 0}
    assert figures["cross_entropy"]["calibrated"] < figures["cross_entropy"]["raw"] and figures["ece"].keys() == {
        "raw",
        "calibrated",
    }
    assert figures["knows"] and figures["written"] and not figures["margin_se"]["upper_bound"]
    assert figures["margin_se"]["people"] == pytest.approx(0.8, abs=0.15)  # what the world's people differ by
    assert figures["margin_se"]["beyond"] == pytest.approx(0.6, abs=0.2)
    assert [row["more"] for row in figures["more"]["foretold"]] == [0, 50, 200]
    assert "judge tells something of people" in captured.err
    assert "Graders calibrated to people" in (tmp_path / "out" / "calibration.html").read_text(encoding="utf-8")

    build(tmp_path / "out", tmp_path / "pairs", options=BuildOptions(format="feedback", raters=("judge@human",)))
    pairs = load_pairs(tmp_path / "pairs").to_pylist()
    assert len(pairs) == 600 and {row["kind"] for row in pairs} == {"ai"}
    made = world(5)
    found = np.zeros(600), np.zeros(600)
    for row in pairs:
        _, number, side = row["chosen"][0]["content"].split()
        found[0][int(number)] = row["quality_margin"] * (1 if side == "a" else -1)
        found[1][int(number)] = row["margin_se"]
    rest = np.arange(600) >= 120
    assert np.corrcoef(found[0][rest], made.expected[rest])[0, 1] > 0.9
    assert 0.9 <= np.mean(np.abs(found[0] - made.expected)[rest] <= 1.96 * found[1][rest]) <= 0.99


def test_fits_of_a_few_numbers_take_one_thread(judged: Path) -> None:
    """More would only spin; afterwards there are as many as before."""

    def threads() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    seen: list[int] = []
    with threadpool_limits(2, "blas"):
        before = len(threads())
        calibrate(judged, progress=lambda *_: seen.extend(threads()), **QUICK)
        assert before and seen and set(seen) == {1}
        assert set(threads()) == {2}


@pytest.mark.slow
def test_a_grader_who_is_right_each_time_has_errors_that_are_numbers(tmp_path: Path) -> None:
    """The held-out error is a rounding error then, and its own error as well."""
    given = [
        {"prompt": f"{n} + 1?", "completion": text, "score": score + shift * (n % 2), "rater": rater}
        for n in range(12)
        for text, score in ((f"{n + 1}.", 4), ("I know.", 2), ("No.", 1))
        for rater, shift in (("ann", 0), ("bob", 1))
    ]
    reading = BuildOptions(format="jsonl", scale=(1, 5), feedback_only=True)
    build(write_rows(tmp_path / "grades.jsonl", given), tmp_path / "people", options=reading)
    with np.errstate(over="raise"):
        found = calibrate(tmp_path / "people", out=tmp_path / "out", raters="bob", to="ann")["graders"]["bob"]
    assert all(0 <= found["margin_se"][name] < 0.1 for name in ("mean", "fit", "beyond"))
    assert all(0 <= row["margin_se"] < 0.1 for row in found["more"]["foretold"])
    assert found["gamma"] == np.inf, "votes that no margin contradicts"
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())  # which takes no Infinity, as JSON has none
    assert manifest["calibration"]["bob"]["gamma"] == "inf"
    build(tmp_path / "out", tmp_path / "pairs", options=BuildOptions(format="feedback", raters=("bob@human",)))
    pairs = load_pairs(tmp_path / "pairs")
    assert pairs.num_rows == 36 and max(pairs["margin_se"].to_pylist()) < 0.1
    assert pairs["quality_margin"].to_pylist() == pytest.approx(
        [round(one) for one in pairs["quality_margin"].to_pylist()], abs=0.1
    )


def test_a_second_run_replaces_the_first(judged: Path, tmp_path: Path) -> None:
    first = calibrate(judged, out=tmp_path / "one", **QUICK)
    second = calibrate(tmp_path / "one", out=tmp_path / "two", **QUICK)
    assert first["rows"] == second["rows"] == {"judge@human": 600} and (first["replaced"], second["replaced"]) == (0, 600)
    assert load_feedback(tmp_path / "one").equals(load_feedback(tmp_path / "two"))
    assert calibrate(load_feedback(judged), **QUICK)["graders"]["judge"]["ece"] == first["graders"]["judge"]["ece"]


def test_the_order_shown_first_is_told_by_people_where_the_judge_was_asked_once(joined: Callable[..., Path]) -> None:
    judge, people = rows_of(world(6), 400)
    once = [row for i, row in enumerate(judge) if i % 2 == (i // 2) % 2]
    found = calibrate(joined((once, (-9, 9), "ai"), (people, (-3, 3), "human")), **QUICK)["graders"]["judge"]
    assert found["bias"] == pytest.approx(0.5, abs=0.2)


def test_scores_become_comparisons_and_margins_beyond_peoples_range_are_told(joined: Callable[..., Path]) -> None:
    """Of three scored replies people compared the first two; the third is further off than anything they saw."""
    random = np.random.default_rng(0)
    scores = [
        {"prompt": f"q{i}", "completion": f"r{i} {j}", "score": s}
        for i in range(40)
        for j, s in enumerate((random.uniform(4, 6), 5, 9))
    ]
    people = [
        {"prompt": f"q{i}", "first": f"r{i} 0", "second": f"r{i} 1", "gap": float(np.sign(round(2 * (scores[3 * i]["score"] - 5)))),
        "rater": who}
        for i in range(40) for who in ("ann", "bob")
    ]  # fmt: skip
    found = calibrate(joined((scores, (0, 10), "reward_model"), (people, (-1, 1), "human")), **QUICK)["graders"]
    [one] = found.values()
    assert one["pairs"] == 120 and one["human_pairs"] == 40 and one["kind"] == "reward_model"
    assert one["outside"] == 80 and one["bias"] is None
    assert max(abs(row["expected"]) for row in one["map"]) <= 1


@pytest.mark.slow
def test_a_grader_that_knows_nothing_is_told_and_not_written(joined: Callable[..., Path], tmp_path: Path) -> None:
    judge, people = rows_of(world(7), 300)
    random = np.random.default_rng(1)
    noise = [{**row, "gap": float(random.normal())} for row in judge]
    folder = joined((noise, (-9, 9), "ai"), (people, (-3, 3), "human"))
    found = calibrate(folder, out=tmp_path / "out", **QUICK)
    figures = found["graders"]["judge"]
    assert not figures["knows"] and not figures["written"] and found["rows"] == {}
    assert "judge can't be told from a coin on 300 human pairs" in sentences("judge", figures)[0]
    assert figures["gain_over_coin_95"][0] <= 0 and figures["gain_over_coin_95"][1] < 0.02
    assert calibrate(folder, out=tmp_path / "kept", unproven="keep", **QUICK)["rows"] == {"judge@human": 600}


@pytest.mark.slow
def test_a_jury_is_stacked_and_set_beside_its_members(joined: Callable[..., Path]) -> None:
    """Two judges with noise of their own know more together than either; people are judged against, never among them."""
    judge, people = rows_of(world(8), 300)
    random = np.random.default_rng(2)
    two = [{**row, "gap": row["gap"] + float(random.normal(0, 1.5)), "rater": name} for name in ("one", "two") for row in judge]
    found = calibrate(joined((two, (-20, 20), "ai"), (people, (-3, 3), "human")), **QUICK)["graders"]
    jury = found["jury"]
    assert jury["members"]["one"] == pytest.approx(0.5, abs=0.15) and jury["members"]["one"] + jury["members"][
        "two"
    ] == pytest.approx(1)
    assert jury["against"].keys() == {"one", "two", "mean", "rater-effects"}
    assert all(jury["against"][name]["more_than_jury_95"][0] > 0 for name in ("one", "two"))
    assert abs(jury["against"]["rater-effects"]["more_than_jury"]) < 0.02
    assert jury["cross_entropy"]["calibrated"] < min(found[name]["cross_entropy"]["calibrated"] for name in ("one", "two"))


def test_aspects_have_maps_of_their_own(joined: Callable[..., Path]) -> None:
    judge, people = rows_of(world(9), 60)
    both = [[{**row, "aspect": aspect} for row in rows for aspect in ("tone", "facts")] for rows in (judge, people)]
    folder = joined((both[0], (-9, 9), "ai"), (both[1], (-3, 3), "human"))
    assert calibrate(folder, **QUICK)["graders"].keys() == {"judge/facts", "judge/tone"}
    assert calibrate(folder, aspects=("tone",), **QUICK)["graders"].keys() == {"judge"}


JUDGE, PEOPLE = rows_of(world(5), 120)


def cut(rows: list[dict[str, Any]], **change: Any) -> list[dict[str, Any]]:
    return [{**row, **change} for row in rows]


@pytest.mark.parametrize(
    ("judge", "people", "words"),
    [
        (JUDGE, cut(PEOPLE[:40], prompt="another question"), ("people graded none of its 600 pairs", "mmpo argilla push", "pull")),
        (JUDGE, cut(PEOPLE[:40], aspect="tone"), ("people graded none of its 600 pairs", "under the same aspect")),
        (JUDGE, PEOPLE[:18], ("people graded 9 of its 600 pairs, and it takes 10",)),
        (cut(JUDGE, prompt="one"), cut(PEOPLE, prompt="one"), ("are of 1 prompt; ",)),
        (cut(JUDGE, gap=0.0), PEOPLE, ("all ties",)),
        (JUDGE, cut(PEOPLE, gap=0.0), ("all of its pairs are ties for people",)),
    ],
    ids=["no overlap", "other aspect", "few", "one prompt", "judge ties", "people tie"],
)
def test_what_can_not_be_calibrated_is_refused_with_the_reason(
    joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], judge: Any, people: Any, words: tuple[str, ...]
) -> None:
    folder = joined((judge, (-9, 9), "ai"), (people, (-3, 3), "human"))
    message = refused(["calibrate", str(folder), "--out", str(tmp_path / "out")], tmp_path, capsys)
    assert all(word in message for word in words)


@pytest.mark.parametrize("method", [*MAPS, "auto"])
def test_ten_pairs_of_five_prompts_are_enough_to_be_told_how_little_they_tell(joined: Callable[..., Path], method: str) -> None:
    few = [[{**row, "prompt": f"q{int(row['first'].split()[1]) % 5}"} for row in rows] for rows in (JUDGE[:60], PEOPLE[:20])]
    found = calibrate(joined((few[0], (-9, 9), "ai"), (few[1], (-3, 3), "human")), method=method, bootstrap=20)["graders"]["judge"]
    assert found["human_pairs"] == 10 and found["human_prompts"] == 5
    low, high = found["gain_over_coin_95"]
    assert low < found["gain_over_coin"] < high and high - low > 0.1  # a tenth of a nat and more can't be told
    assert found["margin_se"]["mean"] > found["margin_se"]["beyond"] > 0


def test_a_build_by_the_calibrated_raters_name_needs_nothing_more_where_others_gave_ratings(
    joined: Callable[..., Path], tmp_path: Path
) -> None:
    rated = [
        {"prompt": row["prompt"], "completion": row["first"], "score": float(i % 5), "rater": "rater"}
        for i, row in enumerate(PEOPLE[:40])
    ]
    calibrate(
        joined((JUDGE, (-9, 9), "ai"), (PEOPLE, (-3, 3), "human"), (rated, (0, 4), "ai")),
        out=tmp_path / "out",
        raters="judge",
        **QUICK,
    )
    build(tmp_path / "out", tmp_path / "pairs", options=BuildOptions(format="feedback", raters=("judge@human",)))
    pairs = load_pairs(tmp_path / "pairs")
    assert pairs.num_rows > 100 and pairs["margin_se"].null_count == 0


def test_a_grader_whose_scale_is_the_other_way_round_is_asked_about(joined: Callable[..., Path]) -> None:
    turned = [{**row, "gap": -row["gap"]} for row in JUDGE]
    found = calibrate(joined((turned, (-9, 9), "ai"), (PEOPLE, (-3, 3), "human")), **QUICK)["graders"]["judge"]
    assert not found["knows"] and any("is its scale the other way round?" in line for line in sentences("judge", found))
    straight = calibrate(joined((JUDGE, (-9, 9), "ai"), (PEOPLE, (-3, 3), "human")), **QUICK)["graders"]["judge"]
    assert not any("other way round" in line for line in sentences("judge", straight))


def test_a_gap_that_is_the_position_bias_and_no_more_is_a_tie(joined: Callable[..., Path]) -> None:
    """Gaps of .1, .2 and .3, the same in both orders, make a bias of .2 in the mean, and ties; a gap of .2 in one order is one too, and no
    win by 1e-17. People agree with a tie half of the time.
    """
    texts = [(f"q{i}", f"a{i}", f"b{i}") for i in range(60)]
    judged = [
        {"prompt": q, "first": first, "second": second, "gap": 0.2 if i >= 30 else (1 + i % 3) / 10, "rater": "judge"}
        for i, (q, a, b) in enumerate(texts)
        for first, second in (((a, b), (b, a)) if i < 30 else ((a, b),))
    ]
    one = {"prompt": "q60", "first": "a60", "second": "b60", "rater": "judge"}
    judged += [one | {"gap": 2.2}, one | {"first": "b60", "second": "a60", "gap": -1.8}]  # the bias is .2 here as well
    people = [
        {"prompt": q, "first": a, "second": b, "gap": 1.0 if i % 4 else -1.0, "rater": "anna"} for i, (q, a, b) in enumerate(texts)
    ] + [one | {"gap": 1.0, "rater": "anna"}]
    found = calibrate(joined((judged, (-9, 9), "ai"), (people, (-3, 3), "human")), **QUICK)["graders"]["judge"]
    assert found["bias"] == pytest.approx(0.2) and found["bias_pairs"] == {"both_orders": 31, "one_order": 0}
    assert found["agreement"]["people_only"] == pytest.approx((60 * 0.5 + 1) / 61)


def test_people_who_contradict_one_another_do_not_call_ties(joined: Callable[..., Path]) -> None:
    rows = [{**row, "rater": rater, "gap": gap} for row in PEOPLE[::2] for rater, gap in (("anna", 1.0), ("ben", -1.0))]
    found = calibrate(joined((JUDGE, (-9, 9), "ai"), (rows, (-3, 3), "human")), **QUICK)["graders"]["judge"]
    assert not found["knows"]


def test_of_fewer_than_five_prompts_nothing_is_told(joined: Callable[..., Path]) -> None:
    few = [[{**row, "prompt": f"q{int(row['first'].split()[1]) % 4}"} for row in rows] for rows in (JUDGE[:60], PEOPLE[:20])]
    with pytest.raises(
        UserError, match="are of 4 prompts; maps are judged on other prompts than they are fitted to, which takes 5"
    ):
        calibrate(joined((few[0], (-9, 9), "ai"), (few[1], (-3, 3), "human")), **QUICK)


def test_the_input_is_never_written_over(joined: Callable[..., Path]) -> None:
    folder = joined((JUDGE, (-9, 9), "ai"), (PEOPLE, (-3, 3), "human"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match="is the input itself"):
        calibrate(folder, out=folder, **QUICK)
    assert {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_without_people_or_graders_it_says_who_is_missing(
    joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = joined((JUDGE, (-9, 9), "ai"), (cut(JUDGE, rater="two"), (-9, 9), "ai"))
    assert "no grade is by a person" in refused(["calibrate", str(folder)], tmp_path, capsys)
    assert "unknown --rater 'nobody'" in refused(["calibrate", str(folder), "--to", "two", "--rater", "nobody"], tmp_path, capsys)
    assert calibrate(folder, to="two", jury=False, **QUICK)["graders"].keys() == {"judge"}
    message = refused(["calibrate", str(folder), "--to", "two", "--rater", "two"], tmp_path, capsys)
    assert "nobody to calibrate onto two: --rater names none of the others (judge); --rater NAME calibrates one" in message


@pytest.mark.slow
def test_a_rater_who_is_no_person_is_called_by_its_name(
    joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In sentences, on the page and in the calibrated rater's name; what was calibrated before is no grader."""
    folder = joined((JUDGE, (-9, 9), "ai"), (cut(PEOPLE[::2], rater="gpt"), (-3, 3), "ai"))
    options = ["--to", "gpt", "--bootstrap", "20", "--method", "ordinal-logit"]
    assert run(["calibrate", str(folder), "--out", str(tmp_path / "out"), *options, "--json"]) == 0
    captured = capsys.readouterr()
    page = (tmp_path / "out" / "calibration.html").read_text(encoding="utf-8")
    page = re.sub(r"<style>.*?</style>|data:image/png;base64,[^\"]*", "", page, flags=re.DOTALL)
    for words in (captured.err, page):
        assert "judge tells something of gpt" in words and not re.search("people|human|a person", words, re.IGNORECASE)
    assert json.loads(captured.out)["rows"] == {"judge@gpt": 600}
    assert calibrate(tmp_path / "out", to="gpt", **QUICK)["graders"].keys() == {"judge"}
    assert "nobody to calibrate onto gpt and judge: there is no other rater" in refused(
        ["calibrate", str(folder), "--to", "judge,gpt"], tmp_path, capsys
    )


def test_a_single_rater_is_no_calibration(joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = joined((JUDGE, (-9, 9), "ai"))
    assert "the only rater is judge" in refused(["calibrate", str(folder)], tmp_path, capsys)


def test_what_it_needs_comes_with_the_extras_that_bring_judges_and_people(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scipy", "scipy.optimize", "scipy.special"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'mmpo[judge]' (scipy" in refused(["calibrate", str(judged)], tmp_path, capsys)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [name for name in ("judge", "argilla", "train") if not any(one.startswith("scipy") for one in extras[name])] == []


def test_people_on_several_scales_have_no_unit(
    joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = joined((JUDGE, (-9, 9), "ai"), (PEOPLE[::2], (-3, 3), "human"), (PEOPLE[1::2], (-5, 5), "human"))
    message = refused(["calibrate", str(folder)], tmp_path, capsys)
    assert "several scales" in message and "person 0 up to 3" in message and "person 1 up to 5" in message


def test_people_can_be_calibrated_onto_people(
    joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = joined((PEOPLE, (-3, 3), "human"))
    assert "nobody to calibrate: all raters are people" in refused(["calibrate", str(folder)], tmp_path, capsys)
    found = calibrate(folder, raters=("person 0",), **QUICK)["graders"]["person 0"]
    assert found["people"] == ["person 1"] and found["margin_se"]["upper_bound"] and found["kind"] == "human"


def test_calibrated_margins_that_do_worse_than_gamma_auto_say_so(
    joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A judge whose margins have one size, with which people agree in three of four pairs, is right at γ auto; a map can only be worse."""
    texts = [(f"q{i}", f"a{i}", f"b{i}") for i in range(120)]
    judge = [
        {"prompt": q, "first": first, "second": second, "gap": gap, "rater": "judge"}
        for q, a, b in texts for first, second, gap in ((a, b, 1.0), (b, a, -1.0))
    ]  # fmt: skip
    people = [
        {"prompt": q, "first": a, "second": b, "gap": 1.0 if i % 4 else -1.0, "rater": "anna"} for i, (q, a, b) in enumerate(texts)
    ]
    folder = joined((judge, (-1, 1), "ai"), (people, (-1, 1), "human"))
    assert run(["calibrate", str(folder), "--out", str(tmp_path / "out"), "--bootstrap", "20", "--length", "off", "--json"]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)["graders"]["judge"]
    entropy, (low, high) = figures["cross_entropy"], figures["gain_over_auto_95"]
    assert (
        figures["gain_over_auto"] == pytest.approx(entropy["raw"] - entropy["calibrated"]) and low < figures["gain_over_auto"] < 0
    )
    words = f"γ auto did better than the map on held-out pairs, by {entropy['calibrated'] - entropy['raw']:.3f} nats a pair (95% interval "
    page = (tmp_path / "out" / "calibration.html").read_text(encoding="utf-8")
    assert figures["written"] and words in captured.err and words in page and high > low
    assert "judge's calibrated margins are written all the same." in captured.err
    assert "cross-entropy, final map" in page and "the figure to go by" in page
