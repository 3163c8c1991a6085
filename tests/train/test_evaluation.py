"""Evaluation: the documented keys, values recomputed by hand from the per-pair file, and measures that are undefined."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmpo.pipeline.errors import UserError
from mmpo.train.evaluation import evaluate
from mmpo.train.options import TrainOptions
from mmpo.train.run import train_policy, train_reward

KEYS = {
    "pairs", "ties", "accuracy", "ece_target", "ece_label", "ece_vote", "brier", "soft_brier", "cross_entropy", "by_margin",
    "by_source", "mean_logratio_chosen", "mean_logratio_rejected", "temperature", "scaled", "gamma", "target",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(dataset, tmp_path_factory):
    """A policy and a reward model trained for a moment."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind, train in (("policy", train_policy), ("reward", train_reward)):
        options = {"data": str(dataset), "out": str(folder / kind), "tiny_size": 16, "tiny_layers": 1, "tiny_vocab": 400}
        train(TrainOptions(kind, pairs_per_step=10, epochs=4, learning_rate=3e-3, **options))
        found[kind] = folder / kind
    return found


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_measures_follow_from_the_pairs_that_it_writes(kind, models, dataset, tmp_path):
    found = evaluate(kind, models[kind], dataset, split="test", per_pair=tmp_path / "pairs.parquet")
    assert set(found) >= KEYS
    rows = pq.ParquetFile(tmp_path / "pairs.parquet").read().to_pandas()
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
def test_it_agrees_with_the_last_measurement_of_training(kind, models, dataset):
    from mmpo.train.folder import read_record

    record = read_record(models[kind])
    found = evaluate(kind, models[kind], dataset, split="validation")
    for name in ("accuracy", "ece_target", "ece_label", "soft_brier", "cross_entropy"):
        assert found[name] == pytest.approx(record["summary"]["metrics"][name], abs=1e-5), name


def test_what_is_undefined_is_none(models, pairs_of, tmp_path):
    table = pairs_of(4, [7], seed=9)
    ties = table.filter(pa.compute.equal(table["quality_margin"], 0.0))
    pq.write_table(ties, tmp_path / "ties.parquet")
    found = evaluate("reward", models["reward"], tmp_path / "ties.parquet")
    assert found["pairs"] == found["ties"] == len(ties)
    assert [found[name] for name in ("accuracy", "ece_label", "brier", "ece_vote")] == [None] * 4
    assert found["soft_brier"] is not None


def test_votes_of_other_raters_give_ece_vote_either_way_round(models, dataset, tmp_path):
    table = pq.ParquetFile(dataset / "test" / "part-00000.parquet").read()
    errors = []
    for chosen, rejected, preferring in (("chosen_id", "rejected_id", 7), ("rejected_id", "chosen_id", 3)):
        counts = {"preferring": [preferring] * len(table), "raters": [10] * len(table)}
        votes = pa.table({"chosen_id": table[chosen], "rejected_id": table[rejected], **counts})
        pq.write_table(votes, tmp_path / "votes.parquet")
        errors.append(evaluate("reward", models["reward"], dataset, votes=tmp_path / "votes.parquet")["ece_vote"])
    assert 0 < errors[0] < 1
    assert errors[0] == errors[1]


def test_mistakes_are_named(models, dataset, tmp_path):
    with pytest.raises(UserError, match="is a reward model"):
        evaluate("policy", models["reward"], dataset)
    with pytest.raises(UserError, match="give --gamma"):
        evaluate("reward", tmp_path, dataset)
    with pytest.raises(UserError, match="cannot load"):
        evaluate("reward", tmp_path, dataset, gamma=1.0)
    with pytest.raises(UserError, match="no dataset"):
        evaluate("reward", models["reward"], tmp_path / "nowhere")
