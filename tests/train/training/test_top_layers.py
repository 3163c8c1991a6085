"""`--trainable top:N`: the saved model is an ordinary one whose lower layers are as they were, and keeping their states changes nothing."""

from contextlib import nullcontext

import pytest
import torch
from training_cases import user_error

from mmpo.train.model import load_pretrained
from mmpo.train.training import run


def weights(kind, folder):
    return load_pretrained(kind, str(folder))[0].state_dict()


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_only_the_uppermost_layers_change_and_as_without_kept_states(kind, dataset, train_tiny, tmp_path, monkeypatch, capsys):
    options = {"trainable": "top:2", "tiny_layers": 3, "epochs": 3, "learning_rate": 1e-3, "tokens_per_batch": 600}
    options |= {"reference_cache": str(tmp_path / "cache")} if kind == "policy" else {}
    start = train_tiny(kind, dataset, tmp_path / "start", **{**options, "learning_rate": 1e-30, "max_steps": 1})
    kept = train_tiny(kind, dataset, tmp_path / "kept", **options)
    said = capsys.readouterr().err
    assert "the 1 frozen layers were computed once" in said and ("shares its weights" in said) == (kind == "policy")
    monkeypatch.setattr(run, "known_below", lambda *_: nullcontext())
    plain = train_tiny(kind, dataset, tmp_path / "plain", **options)
    assert kept["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-6)
    before, after, other = (weights(kind, result["out"]) for result in (start, kept, plain))
    changed = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-7)}
    assert {name.split(".")[2] for name in changed if ".layers." in name} == {"1", "2"}
    assert "model.embed_tokens.weight" not in changed and ("score.weight" in changed) == (kind == "reward")
    for name in before:
        torch.testing.assert_close(after[name], other[name], atol=2e-4, rtol=0)
    assert not [path for path in (tmp_path / "kept").iterdir() if "states" in path.name]


def test_a_score_layer_alone_trains_upon_states_that_are_computed_once(dataset, train_tiny, tmp_path, monkeypatch, capsys):
    options = {"trainable": "head", "tiny_layers": 2, "epochs": 3, "tokens_per_batch": 600}
    start = train_tiny("reward", dataset, tmp_path / "start", **{**options, "learning_rate": 1e-30, "max_steps": 1})
    kept = train_tiny("reward", dataset, tmp_path / "kept", **options)
    assert "the 2 frozen layers were computed once" in (said := capsys.readouterr().err) and "completions' states" in said
    monkeypatch.setattr(run, "known_below", lambda *_: nullcontext())
    plain = train_tiny("reward", dataset, tmp_path / "plain", **options)
    assert kept["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-6)
    before, after, other = (weights("reward", result["out"]) for result in (start, kept, plain))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"score.weight"}
    torch.testing.assert_close(after["score.weight"], other["score.weight"], atol=2e-5, rtol=0)


def test_what_excludes_it_is_refused(tiny_options, train_tiny, dataset, tmp_path):
    for name, value in (("lora", 4), ("dropout", True), ("gradient_checkpointing", True)):
        user_error(rf"'top:1' and {name} exclude each other", tiny_options, "reward", trainable="top:1", **{name: value})
    user_error("trainable", tiny_options, "reward", trainable="top:0")
    user_error("a reward model's score layer alone; a policy has none", tiny_options, "policy", trainable="head")
    user_error("trainable", tiny_options, "reward", trainable="bottom:2")
    user_error(
        r"top:5: the model has 1 layers; give top:1 to top:1, or all",
        train_tiny,
        "reward",
        dataset,
        tmp_path / "out",
        trainable="top:5",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trainable", ["top:1", "head"])
def test_runs_that_share_their_states_compute_the_frozen_layers_once(trainable, dataset, train_tiny, tmp_path, monkeypatch):
    from mmpo.train import evaluate
    from mmpo.train.model import StateFile, sharing_states

    options = {"trainable": trainable, "tiny_layers": 2, "epochs": 1, "learning_rate": 1e-3, "eval_split": None}
    added, whole = [], StateFile.add
    monkeypatch.setattr(StateFile, "add", lambda file, keys, states: (added.append(len(keys)), whole(file, keys, states))[1])

    def runs(name):
        """Both runs and their evaluations; after each, how many tokens' states were computed so far."""
        counts, results = [], []
        for number, loss in enumerate(("mmpo", "dpo")):
            results.append(train_tiny("reward", dataset, tmp_path / f"{name}{number}", loss=loss, **options)["train_loss"])
            counts.append(sum(added))
        for number in range(2):
            measured = evaluate("reward", tmp_path / f"{name}{number}", dataset, gamma=1.0, bootstrap=0)
            results.append(measured["cross_entropy"])
            counts.append(sum(added))
        return counts, results

    _, alone = runs("alone")
    added.clear()
    with sharing_states():
        counts, shared = runs("shared")
        probe = counts[1] - counts[0]  # whether states are exact is looked at on one prompt, in every run
        assert 0 < probe < counts[0] / 2
        assert counts[2] > counts[1] and counts[3] == counts[2]  # held-out texts are new to the first evaluation alone
    assert shared == pytest.approx(alone, abs=1e-6)
    other = train_tiny("reward", dataset, tmp_path / "other", **options)
    assert other["train_loss"] == pytest.approx(alone[0], abs=1e-6)


def test_more_layers_than_the_model_has_are_refused_before_anything_is_said(dataset, train_tiny, tmp_path, capsys):
    options = {"trainable": "top:3", "tiny_layers": 2, "max_length": 20, "max_prompt_length": 16, "max_steps": 1}
    user_error("the model has 2 layers", train_tiny, "reward", dataset, tmp_path / "out", **options)
    assert "warning" not in capsys.readouterr().err
