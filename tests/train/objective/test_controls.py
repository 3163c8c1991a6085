"""Controls: the same pairs, ties as they are, with targets that know less; cdpo by hand is what matched smoothing equals."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmpo.pipeline.errors import UserError
from mmpo.train.objective import check_control, controlled

P, MARGIN = np.array([0.5, 0.6, 0.8, 0.9, 0.5]), np.array([0.0, 1.0, 2.0, 3.0, 0.0])


def test_matched_smoothing_is_the_weighted_mean_over_untied_pairs_and_leaves_ties():
    p, margin = controlled("matched", P, MARGIN, np.array([1.0, 2.0, 1.0, 1.0, 5.0]), list("abcde"), seed=0)
    assert p == pytest.approx([0.5, 0.725, 0.725, 0.725, 0.5])  # (2·.6 + .8 + .9) / 4
    assert np.array_equal(margin, MARGIN)
    assert np.array_equal(
        controlled("matched", P, MARGIN, np.zeros(5), list("abcde"), 0)[0], P
    )  # pairs that count nothing have no mean


def test_shuffled_margins_keep_their_targets_and_the_places_of_ties():
    random = np.random.default_rng(1)
    margin = random.integers(0, 4, 200).astype(float)
    p, weight = 1 / (1 + np.exp(-margin)), random.random(200)
    names = [str(pair // 2) for pair in range(200)]  # each stands there twice
    found, sizes = controlled("shuffled", p, margin, weight, names, seed=3)
    assert np.array_equal(sizes == 0, margin == 0) and np.array_equal(np.sort(sizes), np.sort(margin))
    assert np.array_equal(found, 1 / (1 + np.exp(-sizes)))  # a margin moves with its target
    assert (sizes != margin).mean() > 0.3
    assert np.array_equal(controlled("shuffled", p, margin, weight, names, 3)[0], found)
    assert not np.array_equal(controlled("shuffled", p, margin, weight, names, 4)[0], found)
    order = random.permutation(200)
    again, moved = controlled("shuffled", p[order], margin[order], weight, [names[pair] for pair in order], seed=3)
    as_before = sorted(zip(names, margin, found, sizes, strict=True))
    assert sorted(zip([names[pair] for pair in order], margin[order], again, moved, strict=True)) == as_before


@pytest.mark.parametrize(
    ("control", "terms", "words"),
    [
        ("matched", ["dpo"], "take --loss mmpo"),
        ("matched", ["rpo-sq"], "take --loss mmpo"),
        ("matched", ["sft"], "take --loss mmpo|changes nothing"),
        ("shuffled", ["cdpo", "sft"], "cdpo reads no margin"),
        ("shuffled", ["listwise"], "belong to no pair"),
    ],
)
def test_an_objective_that_would_not_see_the_control_is_refused(control, terms, words):
    with pytest.raises(UserError, match=words):
        check_control(control, terms)


@pytest.mark.parametrize(("control", "terms"), [("matched", ["mmpo", "sft"]), ("shuffled", ["odpo"]), ("shuffled", ["mmpo"])])
def test_one_that_would_is_taken(control, terms):
    check_control(control, terms)


def test_a_run_with_matched_smoothing_is_one_of_cdpo_with_that_epsilon(dataset, train_tiny, tiny_options, tmp_path):
    from mmpo.train.training import run

    more = {"ties": "drop", "max_steps": 3, "eval_split": None}
    matched = train_tiny("reward", dataset, tmp_path / "matched", control="matched", **more)
    assert json.loads((tmp_path / "matched" / "mmpo.json").read_text())["options"]["control"] == "matched"
    plain = run.prepare_run(tiny_options("reward", dataset, tmp_path / "none", **more))
    mean = float(np.concatenate([prompt.p for prompt in plain.train]).mean())
    cdpo = train_tiny("reward", dataset, tmp_path / "cdpo", loss="cdpo", loss_options={"epsilon": 1 - mean}, **more)
    assert matched["train_loss"] == pytest.approx(cdpo["train_loss"], abs=1e-6)
    shuffled = train_tiny("reward", dataset, tmp_path / "shuffled", control="shuffled", **more)
    assert abs(shuffled["train_loss"] - cdpo["train_loss"]) > 1e-6


def test_the_same_pairs_in_another_order_are_shuffled_alike(dataset, tiny_options, tmp_path):
    from mmpo.train.training import run

    turned = tmp_path / "turned" / "train"
    turned.mkdir(parents=True)
    table = pq.ParquetDataset(dataset / "train").read()
    pq.write_table(table.take(np.random.default_rng(0).permutation(table.num_rows)), turned / "part-00000.parquet")
    found = []
    for folder in (dataset, turned.parent):
        ready = run.prepare_run(
            tiny_options("reward", folder, tmp_path / f"of-{folder.name}", control="shuffled", eval_split=None, weight="prompt")
        )
        found.append(
            {
                (prompt.prompt_id, *pair): size
                for prompt in ready.train
                for *pair, size in zip(prompt.chosen, prompt.rejected, prompt.margin, strict=True)
            }
        )
    assert len(found[0]) == table.num_rows and found[0] == found[1]


def test_held_out_pairs_keep_their_own_targets(dataset, tiny_options, tmp_path):
    from mmpo.train.training import run

    own, other = (
        run.prepare_run(tiny_options("reward", dataset, tmp_path / str(control), control=control)) for control in (None, "shuffled")
    )
    assert own.held_out is not None and other.held_out is not None
    for one, same in zip(own.held_out, other.held_out, strict=True):
        assert np.array_equal(one.p, same.p) and np.array_equal(one.margin, same.margin)
    assert any(not np.array_equal(one.p, same.p) for one, same in zip(own.train, other.train, strict=True))
