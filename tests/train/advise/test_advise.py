"""`mmpo advise`: what it says of planted data, its surface, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from folders import feedback_folder, pairs_folder
from planted import planted_evidence, planted_rows

from mmpo.cli.main import run
from mmpo.pipeline import UserError, load_feedback, load_pairs
from mmpo.train.advise import Setting, advise, evidence, features, margins_add, recommend, settings_for
from mmpo.train.advise.advice import pick, recipe, sentences

KEYS = {"prompts", "pairs", "r2", "baseline", "effects", "margins_add", "recommended", "sentences"}
EFFECT = {
    "objective", "options", "gamma", "mean_target", "accuracy", "nll", "ece", "minus_bradley_terry", "minus_matched", "minus_shuffled"
}  # fmt: skip


def table_of(folder: Path, rows: list[dict[str, Any]]) -> pa.Table:
    return load_pairs(pairs_folder(folder / "pairs", rows))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, np.ndarray]:
    return planted_table(tmp_path_factory.mktemp("planted"), 0.97)


def planted_table(folder: Path, share: float) -> tuple[pa.Table, np.ndarray]:
    rows, features = planted_rows(share, seed=0, prompts=150)
    table = table_of(folder, rows)
    ids = np.unique([*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()])
    text = dict(zip(table["chosen_id"].to_pylist(), table["chosen"].to_pylist()))
    text |= dict(zip(table["rejected_id"].to_pylist(), table["rejected"].to_pylist()))
    return table, np.stack([features[text[one][0]["content"]] for one in ids])


@pytest.mark.slow
def test_margins_that_the_features_explain_add_accuracy(planted: tuple[pa.Table, np.ndarray]) -> None:
    table, values = planted
    found = advise(table, values=values, seeds=3)
    assert found["r2"] > 0.9
    assert found["margins_add"] == {"accuracy": True, "calibration": None}
    assert found["effects"][-1]["minus_matched"]["nll"][2] < 0
    assert "Likelihood improves" in found["sentences"][1] and "calibration error cannot be told apart" in found["sentences"][1]
    assert found["beyond_sign"][1] > 0.3
    assert found["sentences"][0].startswith("Margins add accuracy")
    assert found["recommended"]["loss"] == "mmpo"
    assert found["recommended"]["mean_target"] <= 0.75


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said of twelve prompts."""
    return advise(table_of(tmp_path_factory.mktemp("few"), planted_rows(0.9, seed=1, prompts=12)[0]), seeds=1)


LESS, MORE, LITTLE, NONE = [-0.02, -0.03, -0.01], [0.02, 0.01, 0.03], [-0.001, -0.004, 0.002], [-0.02, -0.05, 0.01]


@pytest.mark.parametrize(
    ("matched", "shuffled", "said"),
    [
        ((LESS, LESS), (LESS, LESS), True),
        ((LESS, NONE), (LESS, LESS), None),
        ((LESS, LESS), (LESS, NONE), None),
        ((LESS, LESS), (NONE, LESS), None),
        ((LITTLE, MORE), (LESS, LESS), False),
        ((LESS, MORE), (LESS, LESS), None),
        ((LITTLE, NONE), (LESS, LESS), None),
    ],
)
def test_calibration_takes_both_measures_against_both_controls(matched: tuple, shuffled: tuple, said: bool | None) -> None:
    measures = {"accuracy": NONE}
    effect = {
        "minus_matched": measures | dict(zip(("nll", "ece"), matched)),
        "minus_shuffled": measures | dict(zip(("nll", "ece"), shuffled)),
    }
    assert margins_add(effect)["calibration"] is said


@pytest.mark.slow
def test_shuffled_margins_add_nothing(planted: tuple[pa.Table, np.ndarray]) -> None:
    table, values = planted
    margin = np.random.default_rng(0).permutation(table["quality_margin"].to_numpy())
    shuffled = table.set_column(table.column_names.index("quality_margin"), "quality_margin", pa.array(margin))
    found = advise(shuffled, values=values)
    assert found["margins_add"]["accuracy"] is not True
    assert found["margins_add"]["calibration"] is not True
    assert found["beyond_sign"][0] < 0.1


def test_the_same_arguments_say_the_same(planted: tuple[pa.Table, np.ndarray]) -> None:
    table, values = planted
    table = table.filter(pc.less(table["prompt_id"], "4"))
    values = values[: len({*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()})]
    assert advise(table, values=values, seeds=1, seed=4) == advise(table, values=values, seeds=1, seed=4)


def test_the_command_prints_the_surface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = planted_rows(0.9, seed=1, prompts=12)
    folder = pairs_folder(tmp_path / "pairs", rows)
    capsys.readouterr()
    assert run(["advise", str(folder), "--seeds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= KEYS
    assert all(set(effect) >= EFFECT for effect in found["effects"])
    assert set(found["recommended"]) >= {"loss", "gamma", "ties", "normalise", "target"}
    assert set(found["margins_add"]) == {"accuracy", "calibration"}
    row = next(one for one in found["effects"] if one["objective"] == "mmpo")
    value, low, high = row["minus_matched"]["accuracy"]
    assert low <= value <= high
    assert found["pairs"] > 0
    assert {row["what"] for row in found["not_measurable"]} >= {"held-out raters' votes"}
    assert [found[name] for name in ("seeds", "turns", "splits")] == [
        1,
        4,
        4,
    ]  # of few pairs each quarter of the others chooses once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([-0.18, -0.35, -0.01], "which is chance"),
        ([0.0, -0.02, 0.005], "would bring little"),
        ([0.02, 0.01, 0.03], "more prompts will help"),
        ([0.0, -0.2, 0.2], ""),
    ],
)
def test_a_learning_curve_says_what_its_interval_allows(few: dict[str, Any], more: list[float], said: str) -> None:
    curve = [*few["learning_curve"][:-1], {**few["learning_curve"][-1], "more": more}]
    [line] = [one for one in sentences({**few, "learning_curve": curve}) if one.startswith("All of the training prompts")]
    concluded = line.partition(").")[2]
    assert said in concluded and bool(said) == bool(concluded)


RATERS = {"maker": 1.0, "same": 2.0, "opposite": -1.0}


def voted(folder: Path, *names: str, prompts: int = 30) -> Path:
    """FEEDBACK of one who makes margins, one who says the same on another scale, and one who says the opposite."""
    rows, _ = planted_rows(0.9, seed=1, prompts=prompts)
    return feedback_folder(folder, [{**row, "score": row["score"] * RATERS[name], "rater": name} for row in rows for name in names])


@pytest.mark.slow
def test_held_out_raters_judge_by_votes_and_make_no_margin(tmp_path: Path) -> None:
    alike, split = (
        advise(voted(tmp_path / names[-1], "maker", *names), seeds=1, votes=names) for names in (("same",), ("same", "opposite"))
    )
    assert [one["votes"]["with_margin"] for one in (alike, split)] == [1.0, 0.5]
    assert alike["votes"]["pairs"] == alike["pairs"] and split["votes"]["votes"] == 2 * split["pairs"]
    for effect in alike["effects"]:
        for name in ("accuracy", "nll"):
            assert effect["votes"][name] == pytest.approx(effect[name], abs=1e-5)
        if effect["minus_matched"]:
            assert effect["votes"]["minus_matched"]["nll"] == pytest.approx(effect["minus_matched"]["nll"], abs=1e-4)
    assert all(effect["votes"]["accuracy"] == pytest.approx(0.5) for effect in split["effects"])
    assert any(sentence.startswith("By ") and " votes of same on " in sentence for sentence in alike["sentences"])
    assert "held-out raters' votes" not in {row["what"] for row in alike["not_measurable"]}


@pytest.mark.parametrize(
    ("votes", "said"),
    [(("maker", "same", "opposite"), "would be the margins' own"), (("sam",), "did you mean 'same'")],
)
def test_votes_of_the_margins_own_raters_are_refused(tmp_path: Path, votes: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        advise(voted(tmp_path / "feedback", *RATERS, prompts=12), votes=votes)


def test_votes_of_pairs_and_of_few_prompts_are_refused(tmp_path: Path) -> None:
    rows = graded(30, lambda i, j: j)
    with pytest.raises(UserError, match="is no FEEDBACK"):
        advise(table_of(tmp_path, rows), votes=("rater",))
    few = [{**row, "rater": "maker"} for row in rows] + [{**row, "rater": "few"} for row in rows[:6]]
    with pytest.raises(UserError, match="on 3 prompts that others graded too"):
        advise(feedback_folder(tmp_path / "feedback", few), votes=("few",))


def graded(prompts: int, score: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {i}?", "completion": f"{word} {i}", "score": score(i, j)}
        for i in range(prompts)
        for j, word in enumerate(("yes", "no way"))
    ]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (graded(1, lambda i, j: j), {}, "1 prompt with untied pairs"),
        (graded(30, lambda i, j: 3), {}, "all 30 pairs are ties"),
        (graded(30, lambda i, j: j), {"features": "bagg"}, "did you mean 'bag'"),
        (graded(30, lambda i, j: j), {"features": "missing.parquet"}, "missing.parquet"),
        (graded(30, lambda i, j: j), {"ask": "Is this good?"}, "features are 'bag': name a model, or leave out `ask`"),
        (
            graded(30, lambda i, j: j),
            {"features": "encoder"},
            r"--features encoder: there is no such folder. It takes bag, .*owner/name",
        ),
        (graded(30, lambda i, j: j), {"features": __file__}, "that is a file. It takes bag, "),
        (graded(30, lambda i, j: j), {"seeds": 0}, "seeds: 0 is not 1 or more"),
    ],
)
def test_what_can_not_be_compared_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        advise(table_of(tmp_path, rows), **options)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda ids, values: (ids, values), None),
        (lambda ids, values: ([*ids, ids[3]], [*values, [9.0, 9.0]]), "1 rows repeat an id"),
        (lambda ids, values: (ids, [[float("nan"), 1.0], *values[1:]]), "finite numbers; those of 1 completions are not"),
        (lambda ids, values: (ids, [[] for _ in values]), "the lists in features are empty"),
        (lambda ids, values: (ids, [[1.0, 2.0] for _ in values]), "all completions have the same features"),
        (lambda ids, values: (ids, [[1.0], *values[1:]]), "lists of one length"),
        (lambda ids, values: (ids[1:], values[1:]), "no features of 1 of the 60 completions"),
    ],
    ids=["right", "twice", "nan", "empty", "constant", "ragged", "missing"],
)
def test_a_file_of_features_says_what_is_wrong_with_it(tmp_path: Path, spoil: Any, said: str | None) -> None:
    found, _ = evidence.evidence_of(table_of(tmp_path, graded(30, lambda i, j: j)), "it")
    ids, values = spoil(list(found.ids), np.random.default_rng(0).standard_normal((60, 2)).tolist())
    file = tmp_path / "features.parquet"
    pq.write_table(pa.table({"id": ids, "features": pa.array(values, pa.list_(pa.float64()))}), file)
    if said is None:
        assert features.from_file(file, found).tolist() == values
    else:
        with pytest.raises(UserError, match=said):
            features.from_file(file, found)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Setting("mmpo", 0.75), "{build: {normalise: none}, training: {loss: mmpo, gamma: 1.099, target: plain, ties: keep}}"),
        (Setting("mmpo", target="levels"), "{build: {normalise: none}, training: {loss: mmpo, target: levels, ties: keep}}"),
        (Setting("cdpo", options={"epsilon": 0.1}), "loss: cdpo, loss_options: {epsilon: 0.1}"),
    ],
    ids=["mmpo", "levels", "cdpo"],
)
def test_a_recommendation_is_a_recipe(row: Setting, said: str) -> None:
    found, _ = planted_evidence(0.5, 0, prompts=2)
    found = found.only(np.arange(3))
    found.margin[:] = 1.0
    assert said in recipe(recommend(row, found, "none", None))


@pytest.mark.slow
def test_where_all_is_right_nothing_is_left_to_add(tmp_path: Path) -> None:
    """One word decides: likelihoods stay those of probabilities, and no recommendation says what to do with ties that it leaves out."""
    rng = np.random.default_rng(0)
    rows = [{**row, "score": 4 * row["score"] + float(rng.random())} for row in graded(60, lambda i, j: j)]
    found = advise(table_of(tmp_path, rows), seeds=2)
    assert found["baseline"]["accuracy"] == 1.0
    assert all(effect["nll"] < np.log(2) for effect in found["effects"])
    assert any("nothing is left to add" in line for line in found["sentences"])
    assert found["recommended"]["ties"] == ("drop" if found["recommended"]["loss"] in ("dpo", "cdpo") else "keep")


@pytest.mark.slow
def test_pairs_and_the_feedback_that_they_were_built_of_say_the_same(tmp_path: Path) -> None:
    """In whatever order rows stand; normalisations and votes, which PAIRS can't have, apart."""
    rows, _ = planted_rows(0.6, seed=2, prompts=15)
    table = table_of(tmp_path, rows)
    mixed = table.take(np.random.default_rng(0).permutation(table.num_rows))
    one, other, third = (advise(data, seeds=1) for data in (table, mixed, feedback_folder(tmp_path / "feedback", rows)))
    assert len(one["effects"]) > 5 and one["effects"][-1]["minus_shuffled"]["nll"][0] != 0
    apart = {"data", "kind", "normalisations", "not_measurable", "sentences"}
    assert one == other
    assert {key: one[key] for key in set(one) - apart} == {key: third[key] for key in set(third) - apart}
    other_units = [row for row in third["normalisations"] if row["normalise"] in ("minmax", "zscore")]
    assert [row["minus_none"] for row in other_units] == [[0, 0, 0]] * len(other_units) and other_units  # of one rater
    assert any(line.startswith("No normalisation is told apart from none: by ") for line in third["sentences"])


def test_a_file_of_something_else_is_to_be_built_first(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["Q"], "response_a": ["a"]}), tmp_path / "votes.parquet")
    with pytest.raises(UserError, match="neither PAIRS nor FEEDBACK: build it first"):
        advise(tmp_path / "votes.parquet")


def test_what_is_drawn_of_much_data_goes_by_ids_and_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 prompts with 4 completions of which 80 completions are read: 20 prompts, the same ones of PAIRS in any order and of FEEDBACK."""
    monkeypatch.setattr(evidence, "MOST_COMPLETIONS", 80)
    rows, _ = planted_rows(0.6, seed=2, prompts=40)
    table = table_of(tmp_path, rows)
    mixed = table.take(np.random.default_rng(0).permutation(table.num_rows))
    grades = load_feedback(feedback_folder(tmp_path / "feedback", rows))
    grades = grades.take(np.random.default_rng(1).permutation(grades.num_rows))
    given = evidence.of_feedback(grades, "it", 0).pairs["none"]
    found = [evidence.evidence_of(one, "it", 0) for one in (table, mixed, given)]
    assert len(found[0][0].prompt_ids) == 20 and found[0][1]["prompts_not_drawn"] == 20
    assert all(one.ids == found[0][0].ids and np.array_equal(one.margin, found[0][0].margin) for one, _ in found)
    assert evidence.evidence_of(table, "it", 1)[0].ids != found[0][0].ids


@pytest.mark.parametrize(
    ("explained", "adds", "chosen"),
    [
        (0.3, {"accuracy": None, "calibration": None}, "mmpo"),
        (0.3, {"accuracy": False, "calibration": True}, "mmpo"),
        (0.3, {"accuracy": False, "calibration": None}, "dpo"),
        (-0.01, {"accuracy": None, "calibration": None}, "dpo"),
    ],
)
def test_where_margins_add_nothing_none_are_advised(explained: float, adds: dict[str, bool | None], chosen: str) -> None:
    class Level:
        def recommended(self, candidates: list[Setting]) -> Setting:  # no objective leads the first one
            return candidates[0]

    assert pick(Level(), settings_for(planted_evidence(0.5, 0, prompts=5)[0]), adds, explained).loss == chosen


@pytest.mark.slow
def test_on_shuffled_margins_nothing_is_to_be_gained(planted: tuple[pa.Table, np.ndarray]) -> None:
    table, values = planted
    texts = np.random.default_rng(1).permutation(len(values))
    found = advise(table, values=values[texts], seeds=5)
    assert found["r2"] <= 0
    assert (found["recommended"]["loss"], found["recommended"]["gamma"]) == ("dpo", None)
    assert "loss: dpo" in found["recipe"]
    said = next(one for one in found["sentences"] if "train with" in one)
    none = "to be gained" if found["margins_add"]["accuracy"] is False else "shown to be gained"
    assert said.startswith(f"Nothing is {none} from margins here: train with dpo (Bradley–Terry), or as you would anyway")
    assert not any("mmpo at γ" in one for one in found["sentences"])


def test_a_handful_of_prompts_decides_nothing(few: dict[str, Any]) -> None:
    assert few["prompts_that_judge"] == 3 and few["margins_add"] == {"accuracy": None, "calibration": None}
    assert any(one.startswith("All of this is judged by 3 prompts, too few to tell anything by") for one in few["sentences"])


@pytest.mark.slow
def test_equal_margins_say_no_more_than_their_signs(tmp_path: Path) -> None:
    """Every pair is 3 apart: the controls are the objective itself, and ordinal has no threshold to learn."""
    found = advise(table_of(tmp_path, graded(30, lambda i, j: 1 + 3 * j)), seeds=1)
    assert found["margin_levels"] == 1 and found["recommended"]["loss"] == "dpo"
    assert found["effects"][-1]["minus_matched"]["nll"] == found["effects"][-1]["minus_shuffled"]["nll"] == [0, 0, 0]
    assert found["sentences"][0].startswith("All untied pairs have the same margin")
    assert not any("larger margins" in one or one.startswith("Margins ") for one in found["sentences"])


@pytest.mark.parametrize(
    ("nll", "said"),
    [
        (
            [-0.002, -0.01, 0.006],
            "No objective is shown to be better than the default, mmpo at γ 1.1 (mean target .75), nor that one ",
        ),
        ([-0.02, -0.03, -0.01], "Train with mmpo at γ 1.1 (mean target .75), low, "),
    ],
)
def test_a_default_that_leads_nothing_is_said_to(few: dict[str, Any], nll: list[float], said: str) -> None:
    advice = {"loss": "mmpo", "gamma": 1.1, "mean_target": 0.75, "target": "plain", "minus_bradley_terry": {"nll": nll}}
    found = sentences(few | {"recommended": few["recommended"] | advice})
    assert [one.startswith(said) for one in found].count(True) == 1
