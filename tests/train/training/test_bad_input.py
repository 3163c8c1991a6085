"""Bad input at `mmpo train` and `mmpo evaluate`: exit status 2, one message with what to do, and no folder left behind."""

import copy
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from folders import changed, feedback_folder, read_table, split_folder
from training_cases import FEW_STEPS, make_pairs, save_model, small_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mmpo.cli.main import run
from mmpo.train.data import PLAIN_TEMPLATE
from mmpo.train.evaluation import evaluate
from mmpo.train.model import load_pretrained

pytestmark = pytest.mark.usefixtures("fresh_cache")
SHORT = ("--max-length", 256, "--max-prompt-length", 128)


@pytest.fixture
def gpt2(tokenizer, tmp_path):
    """Writes a GPT-2 (learned positions, 256 of them) with a tokenizer changed by `change` into a folder."""

    def write(kind, change=lambda _: None, size=16, weight=None):
        mine = copy.deepcopy(tokenizer)
        change(mine)
        sizes = {"hidden_size": size, "num_hidden_layers": 1, "vocab_size": len(mine), "pad_token_id": mine.pad_token_id}
        model = small_model("GPT2", kind, **sizes)
        if weight is not None:
            with torch.no_grad():
                model.transformer.ln_f.weight[0] = weight
        return save_model(tmp_path / kind, model, mine)

    return write


@pytest.fixture
def refuses(capsys):
    """Runs a command that the user got wrong: status 2 and one message, which has these parts."""

    def check(command, *said):
        capsys.readouterr()
        status = run([str(word) for word in command])
        out, err = capsys.readouterr()
        assert status == 2, err
        assert "Traceback" not in err
        assert out == ""
        message = err[err.rindex("error: ") :]
        for part in said:
            assert part in message
        return message

    return check


@pytest.fixture
def train(dataset, tmp_path, capsys):
    """Runs `mmpo train` into the folder "out", gives the warnings of a command that went on."""

    def trained(kind, *more, data=dataset, out="out"):
        capsys.readouterr()
        status = run([str(word) for word in command_of(kind, data, tmp_path / out, *more)])
        err = capsys.readouterr().err
        assert status == 0, err
        return [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]

    return trained


def command_of(kind, data, out, *more):
    return ["train", kind, "--data", data, "--out", out, *FEW_STEPS, "--max-steps", 2, *more]


@pytest.fixture
def refuses_to_train(refuses, dataset, tmp_path):
    """The same command where it is refused; no folder is left."""

    def check(kind, *more, said, data=dataset):
        message = refuses(command_of(kind, data, tmp_path / "none", *more), *said)
        assert not (tmp_path / "none").exists()
        return message

    return check


def record(folder):
    return json.loads((folder / "mmpo.json").read_text())


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_model_without_chat_template_is_a_choice_to_make(kind, dataset, gpt2, refuses, refuses_to_train, train, tmp_path):
    model = gpt2(kind, lambda tokenizer: setattr(tokenizer, "chat_template", None))
    refuses_to_train(kind, "--model", model, *SHORT, said=["no chat template", "--chat-template plain"])
    assert train(kind, "--model", model, *SHORT, "--chat-template", "plain") == []
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == PLAIN_TEMPLATE  # evaluation and serving need no choice
    assert evaluate(kind, tmp_path / "out", dataset)["pairs"] == 48
    reference = ["--reference", model] if kind == "policy" else []
    refuses(["evaluate", kind, "--model", model, "--data", dataset, "--gamma", 1, *SHORT, *reference], "no chat template")


LACKS = {
    "pad": lambda tokenizer: setattr(tokenizer, "pad_token", None),
    "eos": lambda tokenizer: setattr(tokenizer, "eos_token", None),
    "both": lambda tokenizer: (setattr(tokenizer, "pad_token", None), setattr(tokenizer, "eos_token", None)),
    "pad is eos": lambda tokenizer: setattr(tokenizer, "pad_token", tokenizer.eos_token),
}


@pytest.mark.parametrize("lacks", LACKS)
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_special_tokens_that_are_missing_or_the_same(kind, lacks, dataset, gpt2, train, tmp_path):
    """All is trained; only the end of text that can't be appended is warned of. Measured again from the folder, all is the same."""

    def left_open(tokenizer):
        LACKS[lacks](tokenizer)
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

    warnings = train(kind, "--model", gpt2(kind, left_open), *SHORT, "--learning-rate", 0.01)
    ends = [line for line in warnings if "no end-of-text token: 74 of 74 completions" in line]
    assert len(ends) == (lacks in ("eos", "both"))
    written = record(tmp_path / "out")
    assert written["counts"].get("end_of_text_missing", 0) == 74 * len(ends)
    found = evaluate(kind, tmp_path / "out", dataset, split="validation")
    assert found["cross_entropy"] == pytest.approx(written["summary"]["metrics"]["cross_entropy"], abs=1e-5)


@pytest.mark.parametrize("lacks", LACKS)
def test_a_saved_reward_model_gives_plain_transformers_our_scores(lacks, dataset, gpt2, train, tmp_path):
    train("reward", "--model", gpt2("reward", LACKS[lacks]), *SHORT, "--learning-rate", 0.01)
    evaluate("reward", tmp_path / "out", dataset, per_pair=tmp_path / "pairs.parquet")
    ours, rows = read_table(tmp_path / "pairs.parquet"), read_table(dataset / "test")
    reader = AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for side in ("chosen", "rejected"):
        pairs = zip(rows["prompt"].to_pylist(), rows[side].to_pylist(), strict=True)
        texts = [reader.apply_chat_template([*prompt, *reply], tokenize=False) for prompt, reply in pairs]
        encoded = reader(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            theirs = plain(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[:, 0]
        assert theirs.numpy() == pytest.approx(ours[f"score_{side}"].to_numpy(), abs=1e-5)


def test_prompts_that_are_too_long_are_left_out_aloud_or_stop_the_run(dataset, refuses_to_train, train, tmp_path):
    rows = read_table(dataset / "train")
    of_first = np.flatnonzero(np.array(rows["prompt_id"]) == rows["prompt_id"][0].as_py())
    table = changed(rows, "prompt", {row: [{"role": "user", "content": "cat " * 200}] for row in of_first})
    (line,) = train("reward", "--max-prompt-length", 100, data=split_folder(tmp_path / "data", train=table))
    assert line.startswith("1 of 20 prompts were left out with all their pairs: they have ")
    assert line.endswith("--max-prompt-length is 100")
    counts = record(tmp_path / "out")["counts"]
    assert counts["pairs_in"] == counts["pairs"] + counts["prompt_not_rendered"]
    said = ["all 20 prompts of", "are longer than --max-prompt-length 5: they have "]
    refuses_to_train("reward", "--max-prompt-length", 5, said=said)


@pytest.mark.parametrize(
    ("kind", "model", "options", "said"),
    [
        ("policy", {}, (), ["takes 256 tokens at most and --max-length is 1024: give --max-length 256"]),
        ("policy", {"weight": float("nan")}, SHORT, ["hold NaN or infinite values"]),
        ("policy", {"kind": "reward"}, SHORT, ["is a reward model"]),
    ],
)
def test_models_that_do_not_fit(kind, model, options, said, gpt2, refuses_to_train):
    refuses_to_train(kind, "--model", gpt2(**{"kind": kind, **model}), *options, said=said)


def test_a_tokenizer_of_more_tokens_than_the_model_knows(gpt2, refuses_to_train):
    model = gpt2("reward")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["good"])
    tokenizer.save_pretrained(model)
    refuses_to_train("reward", "--model", model, *SHORT, said=["completions have tokens that", "such as 'good'"])


@pytest.mark.parametrize("gamma", ["auto", "1"])
def test_margins_that_are_all_zero(gamma, refuses_to_train, tmp_path):
    table = make_pairs(4, [3])
    folder = split_folder(tmp_path / "data", train=changed(table, "quality_margin", dict.fromkeys(range(len(table)), 0.0)))
    said = ["all 12 pairs are ties: their quality_margin is 0, so that every target is .5 at any gamma"]
    refuses_to_train("reward", "--gamma", gamma, data=folder, said=said)


def test_a_gamma_that_saturates_everything_trains_with_a_warning(train):
    (line,) = train("reward", "--gamma", "50")
    assert line.startswith("gamma 50 saturates the targets: 100.0% of ")
    assert "100.0% above .999" in line


def test_a_dataset_of_another_version_and_feedback(dataset, refuses_to_train, tmp_path):
    rows = read_table(dataset / "test")
    pq.write_table(rows.replace_schema_metadata({b"mmpo": b'{"schema_version": 2}'}), tmp_path / "a.parquet")
    refuses_to_train("reward", data=tmp_path / "a.parquet", said=["schema version 2; this mmpo reads 1"])
    refuses_to_train("reward", data=feedback_folder(tmp_path / "judged"), said=["judged holds FEEDBACK"])


def test_models_of_the_other_kind(dataset, gpt2, refuses, train):
    policy, reward = gpt2("policy"), gpt2("reward")
    common = ["--data", dataset, "--gamma", 1, *SHORT]
    refuses(["evaluate", "reward", "--model", policy, *common], "has no score layer (score.weight would be random)")
    refuses(["evaluate", "policy", "--model", reward, "--reference", policy, *common], "is a reward model")
    train("reward", "--model", policy, *SHORT)  # how reward models begin


def test_code_that_comes_with_a_model_is_not_run(gpt2, refuses_to_train, tmp_path):
    model = gpt2("policy")
    config = json.loads((model / "config.json").read_text())
    own = {"model_type": "frob", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (model / "config.json").write_text(json.dumps({**config, **own}))
    (model / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n")
    refuses_to_train("policy", "--model", model, *SHORT, said=["--trust-remote-code"])
    assert not (tmp_path / "was-run").exists()


def test_a_reference_that_does_not_fit_leaves_the_folder_free(gpt2, refuses_to_train):
    """Its tokenizer is of other texts than that which `tiny` builds."""
    refuses_to_train("policy", "--reference", gpt2("policy"), *SHORT, said=["has another vocabulary than the policy"])


def test_a_run_meets_another_model_where_its_own_was(dataset, gpt2, unfinished, refuses, train, tmp_path):
    """The same command again, while --model names a folder whose content was replaced: sizes, then the chat template."""
    again = ("--model", gpt2("reward"), *SHORT, "--save-steps", 1)
    train("reward", *again)
    unfinished(tmp_path / "out")
    command = command_of("reward", dataset, tmp_path / "out", *again)
    gpt2("reward", size=32)
    refuses(command, "holds a run of another model (parameters ")
    gpt2("reward", lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages[0]['content'] }}"))
    refuses(command, "another model (chat_template ")
    gpt2("reward")
    train("reward", *again)
    assert record(tmp_path / "out")["finished"] is True


def test_a_checkpoint_of_another_model_is_refused_and_kept(dataset, gpt2, unfinished, refuses, train, tmp_path):
    for name, size in (("one", 16), ("two", 32)):
        options = ("--model", gpt2("reward", size=size), *SHORT, "--save-steps", 1)
        train("reward", *options, out=name)
    out = tmp_path / "two"
    unfinished(out)
    shutil.rmtree(out / "checkpoint-2")
    shutil.copytree(tmp_path / "one" / "checkpoint-2", out / "checkpoint-2")
    refuses(command_of("reward", dataset, out, *options), "checkpoint-2 is of another model: n_embd 16, this run has 32")
    assert (out / "checkpoint-2" / "model.safetensors").is_file()


def test_the_output_folder_is_not_the_models_or_the_references(dataset, refuses, train, tmp_path):
    """--no-resume clears the folder: of a model that training starts from nothing would be left."""
    out = tmp_path / "out"
    train("reward")
    command = command_of("reward", dataset, out, "--model", out, "--no-resume")
    refuses(command, "is --model as well and would be overwritten")
    assert (out / "model.safetensors").is_file()


def test_a_tiny_policys_adapter_can_be_measured_and_trained_on(dataset, train, tmp_path):
    """Its base is in no other place than beside it. Training on starts from what the adapter made of that base."""
    train("policy", "--lora", 2, "--learning-rate", 0.01)
    metrics = record(tmp_path / "out")["summary"]["metrics"]
    found = evaluate("policy", tmp_path / "out", dataset, split="validation")
    assert found["cross_entropy"] == pytest.approx(metrics["cross_entropy"], abs=1e-5)
    train("policy", "--model", tmp_path / "out", "--learning-rate", 0.01, out="next")
    first, second = (load_pretrained("policy", str(tmp_path / name))[0].state_dict() for name in ("out", "next"))
    assert not all(torch.equal(first[name], second[name]) for name in first)
    assert abs(evaluate("policy", tmp_path / "next", dataset)["mean_logratio_chosen"]) > 1e-4
