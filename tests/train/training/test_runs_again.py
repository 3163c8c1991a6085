"""The same folder a second time: what may be corrected, what is refused, what stays, and models that stand on others."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import mmpo.train.training.run as run_module
from mmpo.pipeline.errors import UserError
from mmpo.train.evaluation.evaluate import evaluate
from mmpo.train.model import load_pretrained, tiny_model
from mmpo.train.options import TrainOptions
from mmpo.train.training.progress import Progress
from mmpo.train.training.run import train_policy, train_reward

pytestmark = pytest.mark.usefixtures("fresh_cache")


def options(kind, data, out, **changes):
    defaults = {"max_steps": 3, "pairs_per_step": 10, "tiny_size": 16, "tiny_layers": 1, "tiny_vocab": 400, "save_steps": 2}
    return TrainOptions(kind, data=str(data), out=str(out), **{**defaults, **changes})


def record(out):
    return json.loads((out / "mmpo.json").read_text())


def saved(kind, tokenizer, folder, seed=0):
    tiny_model(kind, tokenizer, size=16, layers=1, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Full(Progress):
    """The device's memory is full before the first step."""

    def on_step_begin(self, args, state, control, **_):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_adapter_on_an_adapters_model_is_read_again_as_it_was(dataset, tokenizer, tmp_path):
    """Of three parts, base, first adapter and second, none may be lost: the folder is all that there is to read."""
    base = saved("policy", tokenizer, tmp_path / "base")
    one = options("policy", dataset, tmp_path / "one", model=str(base), lora=2, learning_rate=0.05, max_steps=6)
    train_policy(one)
    train_policy(options("policy", dataset, tmp_path / "two", model=one.out, lora=2, learning_rate=0.05, max_steps=6))
    assert not json.loads((tmp_path / "two" / "adapter_config.json").read_text())["base_model_name_or_path"]
    ids = torch.randint(0, len(tokenizer), (3, 12), generator=torch.Generator().manual_seed(0))
    first, second = (load_pretrained("policy", str(tmp_path / name))[0] for name in ("one", "two"))
    stacked = PeftModel.from_pretrained(load_pretrained("policy", one.out)[0], str(tmp_path / "two")).eval()
    with torch.no_grad():
        expected, found = stacked(ids).logits.log_softmax(-1), second.eval()(ids).logits.log_softmax(-1)
        before = first.eval()(ids).logits.log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - before).abs().max() > 0.01
    trained = record(tmp_path / "two")["summary"]["metrics"]["cross_entropy"]
    assert evaluate("policy", tmp_path / "two", dataset, split="validation")["cross_entropy"] == pytest.approx(trained, abs=1e-5)
    of_checkpoint = load_pretrained("policy", str(tmp_path / "two" / "checkpoint-6"))[0].state_dict()
    assert all(torch.equal(of_checkpoint[name], value) for name, value in second.state_dict().items())
    with pytest.raises(UserError, match="Leave out `reference` or `lora`, or merge first"):
        train_policy(options("policy", dataset, tmp_path / "three", model=one.out, lora=2, reference=str(base)))
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    "changes", [{"tokens_per_batch": 500}, {"bf16": True}, {"lora": 2}, {"gradient_checkpointing": True}], ids=str
)
@pytest.mark.filterwarnings("ignore")
def test_the_advice_can_be_followed_in_the_same_folder(changes, dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Progress", Full)
        with pytest.raises(UserError, match=r"the memory ran out .*lower") as stopped:
            train_reward(options("reward", dataset, tmp_path / "out"))
    assert "--no-resume" not in str(stopped.value)  # nothing is there to go on from
    assert record(tmp_path / "out")["finished"] is False
    assert train_reward(options("reward", dataset, tmp_path / "out", **changes))["steps"] == 3


def test_memory_that_ran_out_before_training_leaves_nothing(dataset, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run_module, "cached_logprobs", full)
    with pytest.raises(UserError, match="the memory ran out outside of the steps"):
        train_policy(options("policy", dataset, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_only_rounds_may_change_behind_a_checkpoint_and_the_rest_says_how(dataset, tmp_path, monkeypatch):
    class FullLater(Full):
        def on_step_begin(self, args, state, control, **rest):
            if state.global_step == 2:
                super().on_step_begin(args, state, control, **rest)

    whole = train_reward(options("reward", dataset, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Progress", FullLater)
        with pytest.raises(UserError) as stopped:
            train_reward(options("reward", dataset, tmp_path / "out"))
    assert "(--bf16; then give another --out or --no-resume)" in str(stopped.value)
    assert "(--gradient-checkpointing)" in str(stopped.value)
    with pytest.raises(UserError, match=r"other options \(bf16 False -> True\)"):
        train_reward(options("reward", dataset, tmp_path / "out", bf16=True))
    resumed = train_reward(options("reward", dataset, tmp_path / "out", tokens_per_batch=150))
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-5)


@pytest.mark.parametrize("what", ["model", "reference"])
def test_other_weights_behind_the_same_name_are_refused(what, dataset, tokenizer, unfinished, tmp_path):
    named = {name: str(saved("policy", tokenizer, tmp_path / name, seed)) for seed, name in enumerate(("model", "reference"))}
    again = options("policy", dataset, tmp_path / "out", **named)
    train_policy(again)
    unfinished(tmp_path / "out")
    train_policy(again)
    unfinished(tmp_path / "out")
    saved("policy", tokenizer, tmp_path / what, seed=9)
    part = "weights" if what == "model" else "reference_weights"
    with pytest.raises(UserError, match=rf"holds a run of another model \({part} \w{{8}}, now \w{{8}}\).*--no-resume"):
        train_policy(again)
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


def test_a_reward_model_may_start_with_a_new_score_layer_again(dataset, tokenizer, unfinished, tmp_path):
    """Of a changed body a run is refused; the new layer, which is random, makes no part of what must be found again."""
    base = saved("policy", tokenizer, tmp_path / "base")
    again = options("reward", dataset, tmp_path / "out", model=str(base))
    train_reward(again)
    unfinished(tmp_path / "out")
    train_reward(again)
    unfinished(tmp_path / "out")
    values = load_file(base / "model.safetensors")
    save_file({**values, "model.norm.weight": values["model.norm.weight"] * 2}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"another model \(weights "):
        train_reward(again)


def test_starting_again_keeps_the_old_model_until_the_new_one_can_be_trained(dataset, tmp_path):
    """A cache that is a text file is found out only after data, model and options are fine."""
    train_policy(options("policy", dataset, tmp_path / "out"))
    (tmp_path / "cache.txt").write_text("no cache")
    kept = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(UserError):
        train_policy(options("policy", dataset, tmp_path / "out", resume=False, reference_cache=str(tmp_path / "cache.txt")))
    assert sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")) == kept
    assert record(tmp_path / "out")["finished"] is True
    train_policy(options("policy", dataset, tmp_path / "out", resume=False, tiny_size=32))
    assert json.loads((tmp_path / "out" / "reference" / "config.json").read_text())["hidden_size"] == 32
    assert not (tmp_path / "out" / "reference.new").exists()


@pytest.mark.parametrize(
    ("split", "column", "value"),
    [("train", "preferring", 0), ("train", "raters", 7), ("train", "margin_se", 9.0), ("validation", "quality_margin", 0.25)],
)
def test_other_votes_or_held_out_pairs_are_other_data(split, column, value, pairs_of, folder_of, tmp_path):
    tables = {"train": pairs_of(6, [3], seed=1), "validation": pairs_of(3, [3], seed=2)}
    folder = folder_of(tmp_path / "data", **tables)
    train_reward(options("reward", folder, tmp_path / "out"))
    table = tables[split]
    place, field = table.column_names.index(column), table.schema.field(column)
    values = [value, *table[column].to_pylist()[1:]]
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), folder / split / "part-00000.parquet")
    with pytest.raises(UserError, match="data_digest"):
        train_reward(options("reward", folder, tmp_path / "out"))


def test_only_what_is_half_written_is_removed(dataset, unfinished, tmp_path):
    """A folder in the state's place can't be read for a reason that says nothing of the checkpoint."""
    out = tmp_path / "out"
    train_reward(options("reward", dataset, out))
    unfinished(out)
    (out / "checkpoint-notes").write_text("mine")
    (out / "checkpoint-9").mkdir()
    (out / "checkpoint-8" / "trainer_state.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"checkpoint-8/trainer_state\.json can't be read"):
        train_reward(options("reward", dataset, out))
    (out / "checkpoint-8" / "trainer_state.json").rmdir()
    train_reward(options("reward", dataset, out))
    assert (out / "checkpoint-notes").read_text() == "mine"
    assert not (out / "checkpoint-9").exists()
    assert not (out / "checkpoint-8").exists()
