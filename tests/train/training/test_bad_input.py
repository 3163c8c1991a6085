"""Bad input at `mmpo train` and `mmpo evaluate`: exit status 2, one message with what to do, and no folder left behind."""

import copy
import shutil

import numpy as np
import pytest
import torch
from command import refused
from folders import changed, read_table, split_folder
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
        sizes = {"hidden_size": size, "num_hidden_layers": 1, "vocab_size": len(tokenizer), "pad_token_id": mine.pad_token_id}
        model = small_model("GPT2", kind, **sizes)
        if weight is not None:
            with torch.no_grad():
                model.transformer.ln_f.weight[0] = weight
        return save_model(tmp_path / kind, model, mine)

    return write


@pytest.fixture
def refuses(tmp_path, capsys):
    """Runs a command that the user got wrong: one message, which has these parts, and no folder is left."""
    return lambda command, *said: refused([str(word) for word in command], tmp_path, capsys, *said)


@pytest.fixture
def command(dataset, tmp_path):
    """The words of `mmpo train` into the folder "out"."""

    def words(kind, *more, data=dataset, out="out"):
        return ["train", kind, "--data", data, "--out", tmp_path / out, *FEW_STEPS, "--max-steps", 2, *more]

    return words


@pytest.fixture
def train(command, capsys):
    """Runs that command, gives the warnings of one that went on."""

    def trained(*given, **more):
        capsys.readouterr()
        status = run([str(word) for word in command(*given, **more)])
        err = capsys.readouterr().err
        assert status == 0, err
        return [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]

    return trained


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_model_without_chat_template_is_a_choice_to_make(kind, dataset, gpt2, refuses, command, train, tmp_path):
    model = gpt2(kind, lambda tokenizer: setattr(tokenizer, "chat_template", None))
    refuses(command(kind, "--model", model, *SHORT), "no chat template", "--chat-template plain")
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
def test_special_tokens_that_are_missing_or_the_same(kind, lacks, dataset, gpt2, train, record_of, tmp_path):
    """All is trained; only the end of text that can't be appended is warned of. Measured again from the folder, all is the same."""

    def left_open(tokenizer):
        LACKS[lacks](tokenizer)
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

    warnings = train(kind, "--model", gpt2(kind, left_open), *SHORT, "--learning-rate", 0.01)
    ends = [line for line in warnings if "no end-of-text token: 74 of 74 completions" in line]
    assert len(ends) == (lacks in ("eos", "both"))
    written = record_of(tmp_path / "out")
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
    assert reader.pad_token_id == plain.config.pad_token_id != reader.eos_token_id
    for side in ("chosen", "rejected"):
        pairs = zip(rows["prompt"].to_pylist(), rows[side].to_pylist(), strict=True)
        texts = [reader.apply_chat_template([*prompt, *reply], tokenize=False) for prompt, reply in pairs]
        encoded = reader(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            theirs = plain(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[:, 0]
        assert theirs.numpy() == pytest.approx(ours[f"score_{side}"].to_numpy(), abs=1e-5)


def test_prompts_that_are_too_long_are_left_out_aloud_or_stop_the_run(dataset, refuses, command, train, record_of, tmp_path):
    rows = read_table(dataset / "train")
    of_first = np.flatnonzero(np.array(rows["prompt_id"]) == rows["prompt_id"][0].as_py())
    table = changed(rows, "prompt", {row: [{"role": "user", "content": "cat " * 200}] for row in of_first})
    unmeasured, line = train("reward", "--max-prompt-length", 100, data=split_folder(tmp_path / "data", train=table))
    assert unmeasured.endswith("has no pairs in its split validation (--eval-split null asks for that)")
    assert line.startswith("1 of 20 prompts were left out with all their pairs: they have ")
    assert line.endswith("--max-prompt-length is 100")
    counts = record_of(tmp_path / "out")["counts"]
    assert counts["pairs_in"] == counts["pairs"] + counts["prompt_not_rendered"]
    said = ("all 20 prompts of", "are longer than --max-prompt-length 5: they have ")
    refuses(command("reward", "--max-prompt-length", 5, out="none"), *said)


@pytest.mark.parametrize(
    ("kind", "flag", "model", "options", "said"),
    [
        ("policy", "--model", {}, (), ["takes 256 tokens at most and --max-length is 1024: give --max-length 256"]),
        ("policy", "--model", {"weight": float("nan")}, SHORT, ["hold NaN or infinite values"]),
        ("policy", "--model", {"kind": "reward"}, SHORT, ["is a reward model"]),
        ("reward", "--model", {"change": lambda own: own.add_tokens(["good"])}, SHORT, ["tokens that", "such as 'good'"]),
        # its tokenizer is of other texts than that which `tiny` builds
        ("policy", "--reference", {}, SHORT, ["has another vocabulary than the policy"]),
    ],
)
def test_models_that_do_not_fit(kind, flag, model, options, said, gpt2, refuses, command):
    message = refuses(command(kind, flag, gpt2(**{"kind": kind, **model}), *options))
    assert all(part in message for part in said)


@pytest.mark.parametrize("gamma", ["auto", "1"])
def test_margins_that_are_all_zero(gamma, refuses, command, train, tmp_path):
    table = make_pairs(4, [3])
    folder = split_folder(tmp_path / "data", train=changed(table, "quality_margin", dict.fromkeys(range(len(table)), 0.0)))
    said = "all 12 pairs are ties: their quality_margin is 0, so that every target is .5 at any gamma"
    message = refuses(command("reward", "--gamma", gamma, data=folder))
    assert said in message
    advice = message.partition("train on votes with ")[2].partition(" (")[0].split()
    train("reward", *advice, data=folder)
    assert "--target" in advice and (tmp_path / "out" / "model.safetensors").is_file()


def test_a_gamma_that_saturates_everything_trains_with_a_warning(train):
    (line,) = train("reward", "--gamma", "50")
    assert line.startswith("gamma 50 saturates the targets: 100.0% of ")
    assert "100.0% above .999" in line


def test_a_run_meets_another_model_where_its_own_was(gpt2, unfinished, refuses, command, train, record_of, tmp_path):
    """The same command again, while --model names a folder whose content was replaced: sizes, then the chat template."""
    again = ("reward", "--model", gpt2("reward"), *SHORT, "--save-steps", 1)
    train(*again)
    unfinished(tmp_path / "out")
    gpt2("reward", size=32)
    refuses(command(*again), "holds a run of another model (parameters ")
    gpt2("reward", lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages[0]['content'] }}"))
    refuses(command(*again), "another model (chat_template ")
    gpt2("reward")
    train(*again)
    assert record_of(tmp_path / "out")["finished"] is True


def test_a_checkpoint_of_another_model_is_refused_and_kept(gpt2, unfinished, refuses, command, train, tmp_path):
    for name, size in (("one", 16), ("two", 32)):
        options = ("reward", "--model", gpt2("reward", size=size), *SHORT, "--save-steps", 1)
        train(*options, out=name)
    out = tmp_path / "two"
    unfinished(out)
    shutil.rmtree(out / "checkpoint-2")
    shutil.copytree(tmp_path / "one" / "checkpoint-2", out / "checkpoint-2")
    refuses(command(*options, out="two"), "checkpoint-2 is of another model: n_embd 16, this run has 32")
    assert (out / "checkpoint-2" / "model.safetensors").is_file()


def test_the_output_folder_is_not_the_models_or_the_references(refuses, command, train, tmp_path):
    """--no-resume clears the folder: of a model that training starts from nothing would be left."""
    train("reward")
    said = refuses(command("reward", "--model", tmp_path / "out", "--no-resume"))
    assert "is --model as well and would be overwritten" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_tiny_policys_adapter_can_be_measured_and_trained_on(dataset, train, record_of, tmp_path):
    """Its base is in no other place than beside it. Training on starts from what the adapter made of that base."""
    train("policy", "--lora", 2, "--learning-rate", 0.01)
    metrics = record_of(tmp_path / "out")["summary"]["metrics"]
    found = evaluate("policy", tmp_path / "out", dataset, split="validation")
    assert found["cross_entropy"] == pytest.approx(metrics["cross_entropy"], abs=1e-5)
    train("policy", "--model", tmp_path / "out", "--learning-rate", 0.01, out="next")
    first, second = (load_pretrained("policy", str(tmp_path / name))[0].state_dict() for name in ("out", "next"))
    assert not all(torch.equal(first[name], second[name]) for name in first)
    assert abs(evaluate("policy", tmp_path / "next", dataset)["mean_logratio_chosen"]) > 1e-4
