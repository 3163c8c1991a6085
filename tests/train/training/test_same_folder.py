"""The output folder: whose it may be, what may be corrected the second time, what is refused, what stays."""

import json
import os
import re
import signal
import socket
import subprocess

import pytest
import torch
from command import ended, mmpo, started, wait_for
from folders import changed, split_folder
from peft import PeftModel
from training_cases import FEW_STEPS, AtStep, full_memory, make_pairs, save_model, user_error

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import file_lock
from mmpo.train.evaluation import evaluate
from mmpo.train.model import load_pretrained, tiny_model
from mmpo.train.record import RECORD, read_record
from mmpo.train.training import RunFolder
from mmpo.train.training.run_folder import LOCK

pytestmark = pytest.mark.usefixtures("fresh_cache")
SHORT = {"max_steps": 3, "save_steps": 2}
FULL = [AtStep(0, full_memory)]


def saved(tokenizer, folder, seed=0):
    """A policy."""
    return save_model(folder, tiny_model("policy", tokenizer, size=16, layers=1, seed=seed), tokenizer)


@pytest.mark.parametrize("name", ["tiny", "./tiny"])
def test_the_model_that_is_built_is_no_folder(name, tiny_options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunFolder(tiny_options("reward", "pairs", name), "digest").claim()
    assert read_record(tmp_path / "tiny") is not None
    RunFolder(tiny_options("reward", "pairs", name), "digest")  # and once more, now that it is there


@pytest.mark.parametrize(("what", "name"), [("data", "tiny"), ("reference", "tiny"), ("model", "owner/name")])
def test_a_folder_that_is_read_is_refused(what, name, tiny_options, tmp_path, monkeypatch):
    """A name of the Hub too: once there, the folder would be read in place of that model."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--out {name} is --{what} as well"):
        RunFolder(tiny_options("policy", **{"data": "pairs", "out": name, what: name}), "digest")


@pytest.mark.parametrize("left", ["of 0.1.0", "here"])
def test_a_kill_while_the_first_record_is_written_leaves_a_folder_to_begin_in(left, tiny_options, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f"{RECORD}.part" if left == "of 0.1.0" else f".{RECORD}.part-{socket.gethostname()}-{ended.pid}-0"
    (tmp_path / name).write_text('{"kind": "rew')
    own = RunFolder(tiny_options("reward", "pairs", tmp_path), "digest")
    assert own.record is None
    own.claim()
    assert read_record(tmp_path) is not None
    own.abandon()
    assert not tmp_path.exists() or left == "of 0.1.0"
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "thesis.tex").write_text("...")  # beside something else that beginning proves nothing
    user_error("holds something else than a training run", RunFolder, tiny_options("reward", "pairs", tmp_path), "digest")


def test_folders_that_are_not_this_run_are_refused(train_tiny, dataset, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    user_error("something else", train_tiny, "reward", dataset, tmp_path / "taken", resume=False)
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "years of work"
    train_tiny("reward", dataset, tmp_path / "out", max_steps=2)
    user_error(r"loss 'mmpo' -> 'dpo'", train_tiny, "reward", dataset, tmp_path / "out", max_steps=2, loss="dpo")
    cdpo = {"max_steps": 2, "loss": "cdpo"}
    train_tiny("reward", dataset, tmp_path / "cdpo", loss_options={"epsilon": 0.2}, **cdpo)
    record = json.loads((tmp_path / "cdpo" / "mmpo.json").read_text())
    record["options"]["loss_options"] = {"cdpo.epsilon": ".2"}  # as 0.1.0 kept what a command line gave
    (tmp_path / "cdpo" / "mmpo.json").write_text(json.dumps(record))
    assert train_tiny("reward", dataset, tmp_path / "cdpo", loss_options={"epsilon": "0.20"}, **cdpo)["steps"] == 2
    user_error("'epsilon': 0.2} -> ", train_tiny, "reward", dataset, tmp_path / "cdpo", loss_options={"epsilon": 0.1}, **cdpo)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert train_tiny("reward", dataset, tmp_path / "out", max_steps=3, loss="dpo", resume=False)["steps"] == 3
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "changes", [{"tokens_per_batch": 500}, {"bf16": True}, {"lora": 2}, {"gradient_checkpointing": True}], ids=str
)
@pytest.mark.filterwarnings("ignore")
def test_the_advice_can_be_followed_in_the_same_folder(changes, train_tiny, record_of, dataset, tmp_path):
    stopped = user_error("the memory ran out .*lower", train_tiny, "reward", dataset, tmp_path / "out", FULL, **SHORT)
    assert "--no-resume" not in stopped  # nothing is there to go on from
    assert record_of(tmp_path / "out")["finished"] is False
    assert train_tiny("reward", dataset, tmp_path / "out", **SHORT, **changes)["steps"] == 3


def test_what_only_rounds_may_change_behind_a_checkpoint_and_the_rest_says_how(train_tiny, dataset, tmp_path):
    whole = train_tiny("reward", dataset, tmp_path / "whole", **SHORT)
    stopped = user_error("", train_tiny, "reward", dataset, tmp_path / "out", [AtStep(2, full_memory)], **SHORT)
    assert "(--bf16; then give another --out or --no-resume)" in stopped
    assert "(--gradient-checkpointing)" in stopped
    user_error(r"other options \(bf16 False -> True\)", train_tiny, "reward", dataset, tmp_path / "out", bf16=True, **SHORT)
    resumed = train_tiny("reward", dataset, tmp_path / "out", tokens_per_batch=150, **SHORT)
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-5)


def test_logging_and_saving_are_free_to_change_on_resumption(train_tiny, dataset, unfinished, tmp_path):
    out = tmp_path / "out"
    train_tiny("reward", dataset, out, max_steps=4, logging_steps=1, save_steps=2)
    unfinished(out)
    (out / "checkpoint-4").rename(tmp_path / "away")
    changes = {"logging_steps": 2, "save_steps": 3, "report_to": "none", "reference_cache": str(tmp_path)}
    assert train_tiny("reward", dataset, out, max_steps=4, **changes)["steps"] == 4
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_memory_that_ran_out_before_training_leaves_nothing(train_tiny, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("mmpo.train.training.trainers.cached_logprobs", full_memory)
    user_error("the memory ran out outside of the steps", train_tiny, "policy", dataset, tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_reference_values_are_computed_once_and_found_again(train_tiny, dataset, unfinished, tmp_path, monkeypatch):
    train_tiny("policy", dataset, tmp_path / "out", max_steps=2)
    monkeypatch.setattr("mmpo.train.inference.reference.predict_values", lambda model, kind, prompts, **_: [1 / 0 for _ in prompts])
    unfinished(tmp_path / "out")
    assert train_tiny("policy", dataset, tmp_path / "out", max_steps=2)["steps"] == 2


@pytest.mark.parametrize(
    ("kind", "what", "part"),
    [("policy", "model", "weights"), ("policy", "reference", "reference_weights"), ("reward", "model", "weights")],
)
def test_other_weights_behind_the_same_name_are_refused(kind, what, part, train_tiny, dataset, tokenizer, unfinished, tmp_path):
    """A reward model's new score layer, which is random, makes no part of what must be found again."""
    names = ("model", "reference") if kind == "policy" else ("model",)
    named = {name: str(saved(tokenizer, tmp_path / name, seed)) for seed, name in enumerate(names)}
    for _ in range(2):
        train_tiny(kind, dataset, tmp_path / "out", **SHORT, **named)
        unfinished(tmp_path / "out")
    saved(tokenizer, tmp_path / what, seed=9)
    said = rf"holds a run of another model \({part} \w{{8}}, now \w{{8}}\).*--no-resume"
    user_error(said, train_tiny, kind, dataset, tmp_path / "out", **SHORT, **named)
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


def test_starting_again_keeps_the_old_model_until_the_new_one_can_be_trained(train_tiny, record_of, dataset, tmp_path):
    """A cache that is a text file is found out only after data, model and options are fine."""
    out = tmp_path / "out"
    train_tiny("policy", dataset, out, **SHORT)
    (tmp_path / "cache.txt").write_text("no cache")
    kept = sorted(path.relative_to(out) for path in out.rglob("*"))
    user_error("", train_tiny, "policy", dataset, out, resume=False, reference_cache=str(tmp_path / "cache.txt"), **SHORT)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == kept
    assert record_of(out)["finished"] is True
    train_tiny("policy", dataset, out, resume=False, tiny_size=32, **SHORT)
    assert json.loads((out / "reference" / "config.json").read_text())["hidden_size"] == 32
    assert not (out / "reference.new").exists()


@pytest.mark.parametrize(
    ("split", "column", "value"),
    [("train", "preferring", 0), ("train", "raters", 7), ("train", "margin_se", 9.0), ("validation", "quality_margin", 0.25)],
)
def test_other_votes_or_held_out_pairs_are_other_data(split, column, value, train_tiny, tmp_path):
    tables = {"train": make_pairs(6, [3], seed=1), "validation": make_pairs(3, [3], seed=2)}
    folder = split_folder(tmp_path / "data", **tables)
    train_tiny("reward", folder, tmp_path / "out", **SHORT)
    split_folder(folder, **{split: changed(tables[split], column, {0: value})})
    assert "data_digest" in user_error("", train_tiny, "reward", folder, tmp_path / "out", **SHORT)


def test_only_what_is_half_written_is_removed(train_tiny, dataset, unfinished, tmp_path):
    """A folder in the state's place can't be read for a reason that says nothing of the checkpoint."""
    out = tmp_path / "out"
    train_tiny("reward", dataset, out, **SHORT)
    unfinished(out)
    (out / "checkpoint-notes").write_text("mine")
    (out / "checkpoint-9").mkdir()
    (out / "checkpoint-8" / "trainer_state.json").mkdir(parents=True)
    user_error(r"checkpoint-8/trainer_state\.json can't be read", train_tiny, "reward", dataset, out, **SHORT)
    (out / "checkpoint-8" / "trainer_state.json").rmdir()
    train_tiny("reward", dataset, out, **SHORT)
    assert (out / "checkpoint-notes").read_text() == "mine"
    assert not os.path.exists(out / "checkpoint-9") and not (out / "checkpoint-8").exists()


def test_an_adapter_on_an_adapters_model_is_read_again_as_it_was(train_tiny, record_of, dataset, tokenizer, tmp_path):
    """Of three parts, base, first adapter and second, none may be lost: the folder is all that there is to read."""
    base, one, two = saved(tokenizer, tmp_path / "base"), tmp_path / "one", tmp_path / "two"
    usual = {"lora": 2, "learning_rate": 0.05, "max_steps": 6, "save_steps": 2}
    train_tiny("policy", dataset, one, model=str(base), **usual)
    train_tiny("policy", dataset, two, model=str(one), **usual)
    assert not json.loads((two / "adapter_config.json").read_text())["base_model_name_or_path"]
    ids = torch.randint(0, len(tokenizer), (3, 12), generator=torch.Generator().manual_seed(0))
    first, second = (load_pretrained("policy", str(path))[0].eval() for path in (one, two))
    stacked = PeftModel.from_pretrained(load_pretrained("policy", str(one))[0], str(two)).eval()
    with torch.no_grad():
        before, found, expected = (model(ids).logits.log_softmax(-1) for model in (first, second, stacked))
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - before).abs().max() > 0.01
    trained = record_of(two)["summary"]["metrics"]["cross_entropy"]
    assert evaluate("policy", two, dataset, split="validation")["cross_entropy"] == pytest.approx(trained, abs=1e-5)
    of_checkpoint = load_pretrained("policy", str(two / "checkpoint-6"))[0].state_dict()
    assert all(torch.equal(of_checkpoint[name], value) for name, value in second.state_dict().items())
    with pytest.raises(UserError, match="Leave out `reference` or `lora`, or merge first"):
        train_tiny("policy", dataset, tmp_path / "three", model=str(one), lora=2, reference=str(base), **SHORT)
    assert not (tmp_path / "three").exists()


@pytest.mark.slow
def test_a_second_training_into_the_same_folder_names_the_first(dataset, tmp_path):
    """The first one goes on undisturbed, until SIGTERM ends it behind a step; its lock ends with it."""
    out = tmp_path / "out"
    command = ["train", "reward", "--data", dataset, "--out", out, *FEW_STEPS, "--epochs", "2000", "--eval-split", "null"]
    command += ["--save-steps", "2"]
    with started(*command) as first:
        try:
            assert wait_for(lambda: list(out.glob("checkpoint-*")), first)
            second = mmpo(*command)
            first.send_signal(signal.SIGTERM)
            said = ended(first)
        finally:
            first.kill()
    assert second.returncode == 2
    assert f"{out}: another training run (process {first.pid} on " in second.stderr
    assert "wait for it, or give another --out" in second.stderr
    assert first.returncode == 143, said
    assert "stopping after this step; the same command goes on from there" in said and said.endswith("\nterminated\n")
    with file_lock(out / LOCK, "taken"):
        assert read_record(out)["finished"] is False and list(out.glob("checkpoint-*"))


def test_a_run_that_came_meanwhile_is_not_overwritten(tiny_options, tmp_path):
    late, early = (RunFolder(tiny_options("reward", "pairs", tmp_path / "out"), "digest") for _ in range(2))
    early.claim()
    assert re.search(r"another training run \(process .* writes into it", user_error("", late.claim))
    early.release()
    assert "another training run wrote into it meanwhile" in user_error("", late.claim)
