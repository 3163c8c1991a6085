"""Evaluation: the documented keys, values recomputed by hand from the per-pair file, and measures that are undefined."""

import json
import re
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folders import changed, read_table, split_folder
from training_cases import full_memory, make_pairs, user_error
from transformers import AutoModelForSequenceClassification

import mmpo.train.evaluation.pair_values as pair_values_module
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import target_probability
from mmpo.pipeline.metrics import ece_vote
from mmpo.train.evaluation import Votes, evaluate
from mmpo.train.model import load_pretrained

KEYS = {
    "pairs", "ties", "accuracy", "ece_target", "ece_label", "ece_vote", "brier", "soft_brier", "cross_entropy", "by_margin",
    "by_source", "mean_logratio_chosen", "mean_logratio_rejected", "temperature", "scaled", "gamma", "target",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_measures_follow_from_the_pairs_that_it_writes(kind, trained, dataset, tmp_path):
    found = evaluate(kind, trained[kind], dataset, split="test", per_pair=tmp_path / "pairs.parquet")
    assert set(found) >= KEYS
    rows = read_table(tmp_path / "pairs.parquet").to_pandas()
    q, decided = 1 / (1 + np.exp(-rows.z)), rows.margin > 0
    assert len(rows) == found["pairs"] == 48
    assert found["ties"] == int((~decided).sum())
    assert rows.p.to_numpy() == pytest.approx(1 / (1 + np.exp(-found["gamma"] * rows.margin)))
    assert found["accuracy"] == pytest.approx((rows.z[decided] > 0).mean())
    assert found["accuracy"] > 0.6
    assert found["brier"] == pytest.approx(((1 - q[decided]) ** 2).mean())
    assert found["soft_brier"] == pytest.approx(((rows.p - q) ** 2).mean())
    assert found["cross_entropy"] == pytest.approx(-(rows.p * np.log(q) + (1 - rows.p) * np.log(1 - q)).mean())
    assert sum(row["pairs"] for row in found["by_margin"]) == sum(row["pairs"] for row in found["by_source"]) == 48
    assert found["temperature_from"] == "validation"
    if kind == "policy":
        assert found["mean_logratio_chosen"] == pytest.approx(rows.ratio_chosen.mean())
        assert rows.z.to_numpy() == pytest.approx(0.1 * (rows.ratio_chosen - rows.ratio_rejected))
    else:
        assert found["mean_logratio_chosen"] is None
        assert rows.z.to_numpy() == pytest.approx(rows.score_chosen - rows.score_rejected)


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_it_agrees_with_the_last_measurement_of_training(kind, trained, record_of, dataset):
    metrics = record_of(trained[kind])["summary"]["metrics"]
    found = evaluate(kind, trained[kind], dataset, split="validation")
    for name in ("accuracy", "ece_target", "ece_label", "soft_brier", "cross_entropy"):
        assert found[name] == pytest.approx(metrics[name], abs=1e-5), name


def test_what_is_undefined_is_none(trained, tmp_path):
    table = make_pairs(4, [7], seed=9)
    ties = table.filter(pa.compute.equal(table["quality_margin"], 0.0))
    pq.write_table(ties, tmp_path / "ties.parquet")
    found = evaluate("reward", trained["reward"], tmp_path / "ties.parquet")
    assert found["pairs"] == found["ties"] == len(ties)
    assert [found[name] for name in ("accuracy", "ece_label", "brier", "ece_vote")] == [None] * 4
    assert found["soft_brier"] is not None


def votes_file(path, rows):
    """Rows of chosen_id, rejected_id, preferring, raters."""
    names = ("chosen_id", "rejected_id", "preferring", "raters")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


def test_rows_of_one_pair_are_added_up_whichever_way_round_they_stand(tmp_path):
    rows = [("a", "b", 1, 1), ("a", "b", 1, 1), ("b", "a", 1, 1), ("c", "d", 4, 5)]
    votes = Votes(votes_file(tmp_path / "votes.parquet", rows))
    pairs = pa.table({"chosen_id": ["a", "d", "b", "a"], "rejected_id": ["b", "c", "a", "c"]})
    assert votes.of(pairs).tolist() == [[2, 3], [1, 5], [1, 3], [0, 0]]


def test_it_says_how_many_pairs_have_votes_and_measures_on_those(trained, dataset, tmp_path):
    pairs = read_table(dataset / "test").slice(0, 10).to_pylist()
    rows = [(row["chosen_id"], row["rejected_id"], vote, 1) for row in pairs for vote in (1, 1, 0)]
    votes = votes_file(tmp_path / "votes.parquet", rows)
    found = evaluate("reward", trained["reward"], dataset, votes=votes, per_pair=tmp_path / "pairs.parquet")
    assert found["counts"]["pairs_with_votes"] == 10
    z = read_table(tmp_path / "pairs.parquet")["z"].to_numpy()[:10]
    assert found["ece_vote"] == pytest.approx(ece_vote(1 / (1 + np.exp(-z)), np.full(10, 2.0), np.full(10, 3.0)))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("x", "y", 1, 2), ("a", "b", None, 1)], "row 1: .*preferring None"),
        ([("a", "b", "yes", 1)], "row 0: .*preferring 'yes'"),
        ([("a", "b", 2, 1)], "0 <= preferring <= raters"),
        ([("a", "a", 1, 1)], "two different ids"),
        ([(None, "b", 1, 1)], "chosen_id None"),
        ([("a", "b", 1, 1)], "none of the 48 measured pairs has votes"),
    ],
)
def test_votes_that_are_none_are_told_before_anything_is_computed(rows, said, dataset, tmp_path):
    votes = votes_file(tmp_path / "votes.parquet", rows)
    (tmp_path / "no-model").mkdir()
    assert re.search(said, user_error("", evaluate, "reward", tmp_path / "no-model", dataset, gamma=1.0, votes=votes))


def test_a_reference_that_has_changed_is_refused_unless_it_is_named(trained, train_tiny, dataset, tmp_path):
    shutil.copytree(trained["policy"] / "reference", tmp_path / "base")
    train_tiny("policy", dataset, tmp_path / "out", model=str(tmp_path / "base"), learning_rate=3e-3, max_steps=2)
    before = evaluate("policy", tmp_path / "out", dataset)
    model, _ = load_pretrained("policy", str(tmp_path / "base"))
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.05
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"base is no longer the reference that .*out was trained against: .*give --reference"):
        evaluate("policy", tmp_path / "out", dataset)
    now = evaluate("policy", tmp_path / "out", dataset, reference=str(tmp_path / "base"))
    assert now["mean_logratio_chosen"] != pytest.approx(before["mean_logratio_chosen"], abs=1e-3)


def test_both_splits_are_measured_with_each_model_loaded_once(trained, dataset, monkeypatch):
    loaded = []
    for name in ("load_pretrained", "load_reference"):
        real = getattr(pair_values_module, name)
        monkeypatch.setattr(
            pair_values_module, name, lambda *args, _real=real, _name=name, **more: (loaded.append(_name), _real(*args, **more))[1]
        )
    assert evaluate("policy", trained["policy"], dataset)["temperature_from"] == "validation"
    assert loaded == ["load_pretrained", "load_reference"]


def test_a_validation_split_without_targets_leaves_the_measures_alone(trained, dataset, tmp_path, capsys):
    test, validation = make_pairs(8, [4], seed=3), make_pairs(6, [3], seed=2)
    validation = changed(validation, "margin_se", dict.fromkeys(range(len(validation))))
    split_folder(tmp_path / "data", test=test, validation=validation)
    found = evaluate("reward", trained["reward"], tmp_path / "data", target="noise-aware")
    assert found["temperature_from"].startswith("cross-fitted")
    assert "the validation split is of no use: " in capsys.readouterr().err
    split_folder(tmp_path / "alone", test=test)
    split_folder(tmp_path / "tied", test=test, validation=changed(validation, "quality_margin", dict.fromkeys(range(18), 0.0)))
    tied = evaluate("reward", trained["reward"], tmp_path / "tied")
    assert tied["temperature_from"].startswith("cross-fitted")
    assert "of no use: the target of each of its 18 pairs is ½" in capsys.readouterr().err
    alone = evaluate("reward", trained["reward"], tmp_path / "alone", target="noise-aware")
    assert found["cross_entropy"] == alone["cross_entropy"]
    assert found["temperature"] == alone["temperature"]


def test_the_reference_cache_may_be_named(trained, dataset, tmp_path):
    found = evaluate("policy", trained["policy"], dataset, reference_cache=str(tmp_path / "kept.sqlite"))
    with closing(sqlite3.connect(tmp_path / "kept.sqlite")) as kept:
        assert kept.execute("SELECT count(*) FROM logprobs").fetchone() == (8 * 4 + 6 * 3,)
    assert evaluate("policy", trained["policy"], dataset) == found


def test_a_shorter_max_length_alone_is_enough(trained, dataset):
    found = evaluate("reward", trained["reward"], dataset, max_length=25)
    assert found == evaluate("reward", trained["reward"], dataset, max_length=25, max_prompt_length=24)
    assert found["counts"]["completion_truncated"] > 0


def test_memory_that_runs_out_is_named_with_what_to_set(trained, dataset, monkeypatch):
    monkeypatch.setattr(pair_values_module, "predict_values", full_memory)
    message = user_error("", evaluate, "reward", trained["reward"], dataset)
    assert "memory ran out while measuring: set tokens_per_batch lower (--tokens-per-batch, now 4096)" in message


def test_values_that_are_not_finite_are_named_with_their_prompts(trained, dataset, tmp_path):
    shutil.copytree(trained["reward"], tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.score.weight.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    message = user_error("", evaluate, "reward", tmp_path / "model", dataset)
    assert re.search(r"completions of \d+ of \d+ prompts no finite value \(prompt_id ", message)


@pytest.mark.parametrize(
    ("kind", "model", "options", "said"),
    [
        ("policy", "reward", {}, "is a reward model"),
        ("reward", "base", {"gamma": 1.0}, r"has no score layer \(score.weight would be random\)"),
        ("reward", "EMPTY", {}, "give --gamma"),
        ("reward", "EMPTY", {"gamma": 1.0}, "cannot load"),
        ("reward", "EMPTY/typo", {}, "there is no folder EMPTY/typo"),
        ("reward", "some/typo", {}, r"some/typo is no folder here, .*give --gamma"),
        ("reward", "reward", {"per_pair": "EMPTY"}, "is a folder: name the Parquet file to write"),
        ("reward", "reward", {"data": "EMPTY/nowhere"}, "no dataset"),
        ("reward", "reward", {"max_length": -5}, "max_length: -5 is not 1 or more"),
        ("reward", "reward", {"max_length": 0}, "max_length: 0 is not 1 or more"),
        ("reward", "reward", {"max_length": 20, "max_prompt_length": 5000}, "must be below max_length"),
        ("reward", "reward", {"beta": float("nan")}, "beta: nan is not a finite number"),
        ("reward", "reward", {"tokens_per_batch": 0}, "tokens_per_batch: 0 is not 1 or more"),
        ("reward", "reward", {"gamma": -1.0}, "gamma: -1.0 is not 0 or more"),
        ("reward", "reward", {"reference": "some/model"}, "a reward model has no reference"),
    ],
)
def test_mistakes_are_named(kind, model, options, said, trained, dataset, tmp_path):
    def here(value):
        return value.replace("EMPTY", str(tmp_path)) if isinstance(value, str) else value

    given = {"data": dataset, **{name: here(value) for name, value in options.items()}}
    models = {**trained, "base": trained["policy"] / "reference"}
    message = user_error("", evaluate, kind, models.get(model, here(model)), given.pop("data"), **given)
    assert re.search(here(said), message)


def test_gamma_auto_is_that_of_the_training_pairs(trained, dataset):
    margins = read_table(dataset / "train")["quality_margin"].to_numpy()
    found = evaluate("reward", trained["reward"], dataset, gamma="auto:.9")
    assert target_probability(margins[margins > 0], found["gamma"]).mean() == pytest.approx(0.9)


def test_gamma_auto_leaves_out_the_sources_that_training_left_out(trained, dataset, tmp_path):
    train = read_table(dataset / "train")
    margins, sources = train["quality_margin"].to_numpy(), np.array(train["source"].to_pylist())
    shutil.copytree(trained["reward"], tmp_path / "model")
    record = json.loads((tmp_path / "model/mmpo.json").read_text())
    for weights, of in (({"source-0": 0.0}, sources == "source-1"), ({"source-0": 0.0, "source-1": 0.0}, sources != "")):
        record["options"]["source_weights"] = weights  # where none is left, all of them are the data's own
        (tmp_path / "model/mmpo.json").write_text(json.dumps(record))
        gamma = evaluate("reward", tmp_path / "model", dataset, gamma="auto:.9", bootstrap=0)["gamma"]
        assert target_probability(margins[of & (margins > 0)], gamma).mean() == pytest.approx(0.9)
