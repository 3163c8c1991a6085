"""`--sample`: what a policy writes to the same held-out prompts at every evaluation, and that looking changes nothing."""

import json

import pytest
from training_cases import AtStep, user_error

from mmpo.train.data import read_pairs

pytestmark = pytest.mark.usefixtures("fresh_cache")
SHORT = {"max_steps": 6, "learning_rate": 3e-2, "eval_steps": 3, "sample_tokens": 12}


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"lora": 2, "bf16": True}], ids=str)
def test_the_same_prompts_are_replied_to_and_training_is_the_same(changes, train_tiny, same_weights, dataset, tmp_path, capsys):
    how = {**SHORT, **changes}
    train_tiny("policy", dataset, tmp_path / "plain", **how)
    capsys.readouterr()
    train_tiny("policy", dataset, tmp_path / "out", sample=3, **how)
    said = capsys.readouterr().err
    found = rows(tmp_path / "out")
    assert [row["step"] for row in found] == [0] * 3 + [3] * 3 + [6] * 3
    prompts = [[row["prompt_id"] for row in found if row["step"] == step] for step in (0, 3, 6)]
    assert prompts[0] == prompts[1] == prompts[2] and len(set(prompts[0])) == 3
    held_out = {row["prompt_id"]: row["prompt"] for row in read_pairs(dataset, "validation").to_pylist()}
    for row in found:
        assert [message["content"] for message in row["prompt"]] == [one["content"] for one in held_out[row["prompt_id"]]]
        assert 0 < row["tokens"] <= 12 and row["finish"] in ("stop", "length") and (row["finish"] == "stop" or row["tokens"] == 12)
    assert any(first["reply"] != last["reply"] for first, last in zip(found[:3], found[-3:], strict=True))
    assert said.count("sample at step 3: ") == 3 and "Question 2 " in said
    assert same_weights("policy", tmp_path / "plain", tmp_path / "out")


@pytest.mark.slow
def test_another_seed_has_other_prompts_and_a_stopped_run_goes_on_with_its_own(train_tiny, dataset, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tiny("policy", dataset, tmp_path / "out", sample=2, save_steps=2, callbacks=[AtStep(5, interrupt)], **SHORT)
    assert [row["step"] for row in rows(tmp_path / "out")] == [0, 0, 3, 3]
    train_tiny("policy", dataset, tmp_path / "out", sample=2, save_steps=2, **SHORT)
    train_tiny("policy", dataset, tmp_path / "whole", sample=2, **SHORT)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    other = {tuple(sorted({row["prompt_id"] for row in rows(tmp_path / "whole")}))}
    for seed in (1, 2):
        train_tiny("policy", dataset, tmp_path / f"seed-{seed}", sample=2, seed=seed, **SHORT)
        other.add(tuple(sorted({row["prompt_id"] for row in rows(tmp_path / f"seed-{seed}")})))
    assert len(other) > 1


def test_more_prompts_than_there_are_is_said_and_what_cannot_write_is_refused(train_tiny, dataset, tmp_path, capsys):
    train_tiny("policy", dataset, tmp_path / "out", sample=50, **SHORT)
    assert "--sample 50: the split validation has 6 prompts" in capsys.readouterr().err
    assert len(rows(tmp_path / "out")) == 18
    user_error("a reward model writes nothing", train_tiny, "reward", dataset, tmp_path / "x", sample=2)
    user_error("evaluation split", train_tiny, "policy", dataset, tmp_path / "x", sample=2, eval_split=None)
    user_error("exclude each other", train_tiny, "policy", dataset, tmp_path / "x", sample=2, trainable="top:1")
