"""Bad input at `mmpo train` and `mmpo evaluate`: exit status 2, one message with what to do, and no folder left behind."""

import copy
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folders import split_folder
from training_cases import make_pairs
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from mmpo.cli.main import run
from mmpo.train.data import PLAIN_TEMPLATE
from mmpo.train.evaluation import evaluate
from mmpo.train.model import load_pretrained, tiny_model

pytestmark = pytest.mark.usefixtures("fresh_cache")
SMALL = ["--tiny-size", "16", "--tiny-layers", "1", "--tiny-vocab", "400", "--pairs-per-step", "10", "--max-steps", "2"]


@pytest.fixture
def gpt2(tokenizer, tmp_path):
    """Writes a GPT-2 (learned positions, 256 of them) with a tokenizer changed by `change` into a folder."""

    def write(kind, change=lambda _: None, **config):
        mine = copy.deepcopy(tokenizer)
        change(mine)
        torch.manual_seed(3)
        sizes = {"n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 1, **config}
        sizes |= {"vocab_size": len(mine), "pad_token_id": mine.pad_token_id}
        model = GPT2LMHeadModel if kind == "policy" else GPT2ForSequenceClassification
        model(GPT2Config(**sizes)).save_pretrained(tmp_path / kind)
        mine.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return write


def train(kind, data, out, *more):
    return run(["train", kind, "--data", str(data), "--out", str(out), *SMALL, *map(str, more)])


def refused(capsys, status, out=None):
    """The one message of a command that the user got wrong."""
    said = capsys.readouterr()
    assert status == 2, said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert out is None or not out.exists()
    return said.err[said.err.rindex("error: ") :]


def trained(capsys, status):
    """The warnings of a command that went on."""
    said = capsys.readouterr()
    assert status == 0, said.err
    return [line.removeprefix("warning: ") for line in said.err.splitlines() if line.startswith("warning: ")]


SHORT = ("--max-length", 256, "--max-prompt-length", 128)


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_model_without_chat_template_is_a_choice_to_make(kind, dataset, gpt2, tmp_path, capsys):
    model = gpt2(kind, lambda tokenizer: setattr(tokenizer, "chat_template", None))
    out = tmp_path / "out"
    message = refused(capsys, train(kind, dataset, out, "--model", model, *SHORT), out)
    assert "no chat template" in message
    assert "--chat-template plain" in message
    assert trained(capsys, train(kind, dataset, out, "--model", model, *SHORT, "--chat-template", "plain")) == []
    assert AutoTokenizer.from_pretrained(out).chat_template == PLAIN_TEMPLATE  # evaluation and serving need no choice
    assert evaluate(kind, out, dataset)["pairs"] == 48
    message = refused(capsys, run(["evaluate", kind, "--model", str(model), "--data", str(dataset), "--gamma", "1", *map(str, SHORT),
                                   *(["--reference", str(model)] if kind == "policy" else [])]))  # fmt: skip
    assert "no chat template" in message


def none_at_all(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token = None


LACKS = {
    "pad": lambda tokenizer: setattr(tokenizer, "pad_token", None),
    "eos": lambda tokenizer: setattr(tokenizer, "eos_token", None),
    "both": none_at_all,
    "pad is eos": lambda tokenizer: setattr(tokenizer, "pad_token", tokenizer.eos_token),
}


def left_open(change):
    def both(tokenizer):
        change(tokenizer)
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

    return both


@pytest.mark.parametrize("lacks", LACKS)
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_special_tokens_that_are_missing_or_the_same(kind, lacks, dataset, gpt2, tmp_path, capsys):
    """All is trained; only the end of text that can't be appended is warned of. Measured again from the folder, all is the same."""
    model = gpt2(kind, left_open(LACKS[lacks]))
    warnings = trained(capsys, train(kind, dataset, tmp_path / "out", "--model", model, *SHORT, "--learning-rate", 0.01))
    ends = [line for line in warnings if "no end-of-text token: 74 of 74 completions" in line]
    assert len(ends) == (lacks in ("eos", "both"))
    record = json.loads((tmp_path / "out" / "mmpo.json").read_text())
    assert record["counts"].get("end_of_text_missing", 0) == 74 * len(ends)
    found = evaluate(kind, tmp_path / "out", dataset, split="validation")
    assert found["cross_entropy"] == pytest.approx(record["summary"]["metrics"]["cross_entropy"], abs=1e-5)


@pytest.mark.parametrize("lacks", LACKS)
def test_a_saved_reward_model_gives_plain_transformers_our_scores(lacks, dataset, gpt2, tmp_path, capsys):
    model = gpt2("reward", LACKS[lacks])
    trained(capsys, train("reward", dataset, tmp_path / "out", "--model", model, *SHORT, "--learning-rate", 0.01))
    evaluate("reward", tmp_path / "out", dataset, per_pair=tmp_path / "pairs.parquet")
    ours = pq.ParquetFile(tmp_path / "pairs.parquet").read()
    rows = pq.ParquetFile(dataset / "test" / "part-00000.parquet").read()
    reader = AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for side in ("chosen", "rejected"):
        pairs = zip(rows["prompt"].to_pylist(), rows[side].to_pylist(), strict=True)
        texts = [reader.apply_chat_template([*prompt, *reply], tokenize=False) for prompt, reply in pairs]
        encoded = reader(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            theirs = plain(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[:, 0]
        assert theirs.numpy() == pytest.approx(ours[f"score_{side}"].to_numpy(), abs=1e-5)


def test_prompts_that_are_too_long_are_left_out_aloud_or_stop_the_run(dataset, tmp_path, capsys):
    rows = pq.ParquetFile(dataset / "train" / "part-00000.parquet").read()
    long = [{"role": "user", "content": "cat " * 200}]
    prompts = [
        long if i == rows["prompt_id"][0].as_py() else p for i, p in zip(rows["prompt_id"].to_pylist(), rows["prompt"].to_pylist())
    ]
    place = rows.column_names.index("prompt")
    (tmp_path / "data" / "train").mkdir(parents=True)
    pq.write_table(
        rows.set_column(place, rows.field(place), pa.array(prompts, rows.field(place).type)), tmp_path / "data/train/a.parquet"
    )
    (line,) = trained(capsys, train("reward", tmp_path / "data", tmp_path / "out", "--max-prompt-length", 100))
    assert line.startswith("1 of 20 prompts were left out with all their pairs: they have ")
    assert line.endswith("--max-prompt-length is 100")
    counts = json.loads((tmp_path / "out" / "mmpo.json").read_text())["counts"]
    assert counts["pairs_in"] == counts["pairs"] + counts["prompt_not_rendered"]
    message = refused(capsys, train("reward", dataset, tmp_path / "none", "--max-prompt-length", 5), tmp_path / "none")
    assert "all 20 prompts of" in message
    assert "are longer than --max-prompt-length 5: they have " in message


def test_more_tokens_than_the_model_has_positions(dataset, gpt2, tmp_path, capsys):
    model = gpt2("policy")
    message = refused(capsys, train("policy", dataset, tmp_path / "out", "--model", model), tmp_path / "out")
    assert "takes 256 tokens at most and --max-length is 1024: give --max-length 256" in message


@pytest.mark.parametrize("gamma", ["auto", "1"])
def test_margins_that_are_all_zero(gamma, tmp_path, capsys):
    table = make_pairs(4, [3])
    place = table.column_names.index("quality_margin")
    folder = split_folder(tmp_path / "data", train=table.set_column(place, table.field(place), pa.array([0.0] * len(table))))
    message = refused(capsys, train("reward", folder, tmp_path / "out", "--gamma", gamma), tmp_path / "out")
    assert "all 12 pairs are ties: their quality_margin is 0, so that every target is .5 at any gamma" in message


def test_a_gamma_that_saturates_everything_trains_with_a_warning(dataset, tmp_path, capsys):
    (line,) = trained(capsys, train("reward", dataset, tmp_path / "out", "--gamma", "50"))
    assert line.startswith("gamma 50 saturates the targets: 100.0% of ")
    assert "100.0% above .999" in line


def test_a_dataset_of_another_version_and_feedback(dataset, tmp_path, capsys):
    rows = pq.ParquetFile(dataset / "test" / "part-00000.parquet").read()
    pq.write_table(rows.replace_schema_metadata({b"mmpo": b'{"schema_version": 2}'}), tmp_path / "a.parquet")
    assert "schema version 2; this mmpo reads 1" in refused(
        capsys, train("reward", tmp_path / "a.parquet", tmp_path / "o"), tmp_path / "o"
    )
    grades = tmp_path / "grades.jsonl"
    grades.write_text("".join(json.dumps({"prompt": "Q?", "completion": f"A {i}", "score": i}) + "\n" for i in range(3)))
    assert run(["build", str(grades), "--format", "jsonl", "--feedback-only", "--out", str(tmp_path / "judged")]) == 0
    capsys.readouterr()
    message = refused(capsys, train("reward", tmp_path / "judged", tmp_path / "o"), tmp_path / "o")
    assert "judged holds FEEDBACK" in message


def test_models_of_the_other_kind(dataset, gpt2, tmp_path, capsys):
    policy, reward = gpt2("policy"), gpt2("reward")
    common = ["--data", str(dataset), "--gamma", "1", *map(str, SHORT)]
    message = refused(capsys, run(["evaluate", "reward", "--model", str(policy), *common]))
    assert "has no score layer (score.weight would be random)" in message
    message = refused(capsys, run(["evaluate", "policy", "--model", str(reward), "--reference", str(policy), *common]))
    assert "is a reward model" in message
    message = refused(capsys, train("policy", dataset, tmp_path / "out", "--model", reward, *SHORT), tmp_path / "out")
    assert "is a reward model" in message
    trained(capsys, train("reward", dataset, tmp_path / "out", "--model", policy, *SHORT))  # how reward models begin


def test_code_that_comes_with_a_model_is_not_run(dataset, gpt2, tmp_path, capsys):
    model = gpt2("policy")
    config = json.loads((model / "config.json").read_text())
    own = {"model_type": "frob", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (model / "config.json").write_text(json.dumps({**config, **own}))
    (model / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n")
    message = refused(capsys, train("policy", dataset, tmp_path / "out", "--model", model, *SHORT), tmp_path / "out")
    assert "--trust-remote-code" in message
    assert not (tmp_path / "was-run").exists()


def test_a_reference_that_does_not_fit_leaves_the_folder_free(dataset, gpt2, tmp_path, capsys):
    other = gpt2("policy")  # its tokenizer is of other texts than that which `tiny` builds
    message = refused(capsys, train("policy", dataset, tmp_path / "out", "--reference", other, *SHORT), tmp_path / "out")
    assert "has another vocabulary than the policy" in message
    trained(capsys, train("policy", dataset, tmp_path / "out", *SHORT))


def test_a_run_meets_another_model_where_its_own_was(dataset, gpt2, unfinished, tmp_path, capsys):
    """The same command again, while --model names a folder whose content was replaced: sizes, then the chat template."""
    model, out = gpt2("reward"), tmp_path / "out"
    trained(capsys, train("reward", dataset, out, "--model", model, *SHORT, "--save-steps", 1))
    unfinished(out)
    gpt2("reward", n_embd=32)
    again = ("--model", model, *SHORT, "--save-steps", 1)
    message = refused(capsys, train("reward", dataset, out, *again))
    assert "holds a run of another model (parameters " in message
    gpt2("reward", lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages[0]['content'] }}"))
    assert "another model (chat_template " in refused(capsys, train("reward", dataset, out, *again))
    gpt2("reward")
    trained(capsys, train("reward", dataset, out, *again))
    assert json.loads((out / "mmpo.json").read_text())["finished"] is True


def test_a_checkpoint_of_another_model_is_refused_and_kept(dataset, gpt2, unfinished, tmp_path, capsys):
    for name, size in (("one", 16), ("two", 32)):
        model = gpt2("reward", n_embd=size)
        trained(capsys, train("reward", dataset, tmp_path / name, "--model", model, *SHORT, "--save-steps", 1))
    out = tmp_path / "two"
    unfinished(out)
    shutil.rmtree(out / "checkpoint-2")
    shutil.copytree(tmp_path / "one" / "checkpoint-2", out / "checkpoint-2")
    message = refused(capsys, train("reward", dataset, out, "--model", model, *SHORT, "--save-steps", 1))
    assert "checkpoint-2 is of another model: n_embd 16, this run has 32" in message
    assert (out / "checkpoint-2" / "model.safetensors").is_file()


def test_the_output_folder_is_not_the_models_or_the_references(dataset, gpt2, tmp_path, capsys):
    """--no-resume clears the folder: of a model that training starts from nothing would be left."""
    out = tmp_path / "out"
    trained(capsys, train("reward", dataset, out))
    message = refused(capsys, train("reward", dataset, out, "--model", out, "--no-resume"))
    assert "is --model as well and would be overwritten" in message
    assert (out / "model.safetensors").is_file()


def test_a_tiny_policys_adapter_can_be_measured_and_trained_on(dataset, tmp_path, capsys):
    """Its base is in no other place than beside it. Training on starts from what the adapter made of that base."""
    trained(capsys, train("policy", dataset, tmp_path / "out", "--lora", 2, "--learning-rate", 0.01))
    record = json.loads((tmp_path / "out" / "mmpo.json").read_text())
    found = evaluate("policy", tmp_path / "out", dataset, split="validation")
    assert found["cross_entropy"] == pytest.approx(record["summary"]["metrics"]["cross_entropy"], abs=1e-5)
    trained(capsys, train("policy", dataset, tmp_path / "next", "--model", tmp_path / "out", "--learning-rate", 0.01))
    first, second = (load_pretrained("policy", str(tmp_path / name))[0].state_dict() for name in ("out", "next"))
    assert not all(torch.equal(first[name], second[name]) for name in first)
    assert abs(evaluate("policy", tmp_path / "next", dataset)["mean_logratio_chosen"]) > 1e-4


def test_a_model_that_holds_no_numbers(dataset, tokenizer, tmp_path, capsys):
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "bad")
    tokenizer.save_pretrained(tmp_path / "bad")
    message = refused(capsys, train("policy", dataset, tmp_path / "out", "--model", tmp_path / "bad"), tmp_path / "out")
    assert "hold NaN or infinite values" in message


def test_a_tokenizer_of_more_tokens_than_the_model_knows(dataset, gpt2, tmp_path, capsys):
    model = gpt2("reward")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["good"])
    tokenizer.save_pretrained(model)
    message = refused(capsys, train("reward", dataset, tmp_path / "out", "--model", model, *SHORT), tmp_path / "out")
    assert "completions have tokens that" in message
    assert "such as 'good'" in message
