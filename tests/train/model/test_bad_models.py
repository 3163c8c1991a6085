"""Models and tokenizers that can't be trained or measured: refused with what was found, never given random weights silently."""

import copy
import json
import os
import re
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from command import environment, mmpo
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from training_cases import FEW_STEPS, save_model, small_model, user_error, with_random_adapter
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from mmpo.pipeline.errors import UserError
from mmpo.train.data import Rendered
from mmpo.train.model import (
    add_lora,
    check_ids,
    check_model,
    check_same_vocabulary,
    load_frozen,
    load_pretrained,
    load_reference,
    tiny_model,
    tiny_tokenizer,
)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A policy and a reward model as folders."""
    folder = tmp_path_factory.mktemp("saved")
    for kind in ("policy", "reward"):
        save_model(folder / kind, tiny_model(kind, tokenizer, size=16, layers=1), tokenizer)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """Copies of those folders, to be broken."""
    return lambda kind: shutil.copytree(saved / kind, tmp_path / kind)


UP = "model.layers.0.mlp.up_proj.weight"


def weights(folder, *gone, **changed):
    """The folder with some of its weights gone and others changed."""
    values = {name: value for name, value in load_file(folder / "model.safetensors").items() if name not in gone}
    save_file({**values, **changed}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("kind", "folder", "said"),
    [
        ("reward", "policy", r"has no score layer \(score\.weight would be random\).*LlamaForCausalLM.*`policy`"),
        ("policy", "reward", r"is a reward model \(LlamaForSequenceClassification\), no policy.*`reward`"),
    ],
)
def test_a_model_of_the_other_kind_is_refused_and_leaves_transformers_own_settings_as_they_were(kind, folder, said, saved):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    user_error(said, load_pretrained, kind, str(saved / folder))
    load_pretrained(kind, str(saved / kind))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("load", [load_frozen, partial(load_pretrained, "policy")])
@pytest.mark.parametrize("offline", [True, False])
def test_where_the_hub_can_not_be_asked_it_is_said_at_once(load, offline, monkeypatch, caplog):
    """Nothing listens at the address; the libraries would try it six times a file."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = user_error("there is no folder 'own/typo' here, and no model of that name in the cache", load, "own/typo")
    assert ("HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9 can't be reached") in said
    assert "Retrying" not in caplog.text


def turned_into_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("{}")


def moved_below(folder):
    folder.rename(folder.with_name("step-1"))
    folder.mkdir()
    folder.with_name("step-1").rename(folder / "step-1")


def turned_into_a_dataset(folder):
    (folder / "config.json").unlink()
    (folder / "manifest.json").write_text("{}")


SCORES = {"score.weight": torch.zeros(3, 16)}
CANNOT = "cannot load the .*policy.*"


@pytest.mark.parametrize(
    ("kind", "broken", "said"),
    [
        ("policy", lambda folder: (folder / "model.safetensors").write_bytes(b""), f"{CANNOT}is it whole"),
        ("policy", lambda folder: os.truncate(folder / "model.safetensors", 3000), f"{CANNOT}is it whole"),
        ("policy", lambda folder: (folder / "model.safetensors").unlink(), f"{CANNOT}no file named model.safetensors"),
        (
            "policy",
            lambda folder: (folder / "config.json").unlink(),
            f"{CANNOT}no config.json.*there: chat_template.jinja, generation",
        ),
        ("policy", turned_into_a_file, f"{CANNOT}it is a file; name the folder"),
        ("policy", moved_below, rf"{CANNOT}no config.json.*what is there: step-1.*Models stand in it: .*/step-1\b"),
        ("policy", turned_into_a_dataset, f"{CANNOT}it is a dataset folder of mmpo, no model"),
        ("policy", lambda folder: (folder / "config.json").write_text("{"), f"{CANNOT}not a valid JSON file"),
        ("policy", lambda folder: os.truncate(folder / "tokenizer.json", 500), f"{CANNOT}is it whole"),
        ("policy", lambda folder: configured(folder, model_type="frob"), f"{CANNOT}model type `frob`"),
        ("policy", lambda folder: [path.unlink() for path in folder.iterdir()], f"{CANNOT}what is there: nothing"),
        ("policy", shutil.rmtree, f"{CANNOT}there is no such folder"),
        # weights that are missing are not made up, those of another shape are named
        ("policy", lambda folder: weights(folder, "model.norm.weight", UP), rf"lacks 2 of the weights .*{UP}, model\.norm\."),
        ("reward", lambda folder: weights(folder, "model.norm.weight"), r"lacks 1 of the weights .*half-written"),
        ("policy", lambda folder: configured(folder, vocab_size=99), r"embed_tokens\.weight \(\d+, 16\), .* says \(99, 16\)"),
        ("reward", lambda folder: weights(folder, **SCORES), r"score\.weight \(3, 16\), .* says \(1, 16\)\. .* has one score"),
    ],
)
def test_half_written_and_missing_folders(kind, broken, said, copied):
    folder = copied(kind)
    broken(folder)
    assert re.search(said, user_error("", load_pretrained, kind, str(folder), new_head=kind == "reward"))


@pytest.mark.parametrize("load", [lambda name: load_pretrained("reward", name), load_frozen])
def test_a_model_that_make_models_fetches_is_not_asked_of_the_hub(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    monkeypatch.setattr(AutoConfig, "from_pretrained", None)
    said = user_error("", load, "models/minilm")
    assert "'models/minilm'" in said and ": there is no such folder; `make models` fetches" in said


def test_weights_that_would_run_code_on_loading_are_refused(copied, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "was-run"), "w")

    folder = copied("policy")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Hostile()}, folder / "pytorch_model.bin")
    user_error("cannot load", load_pretrained, "policy", str(folder))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_model_is_run_only_where_asked_for(trusted, copied, dataset, tmp_path):
    """In a process of its own: transformers keeps a copy of such code in a cache that it names when it is imported."""
    folder = configured(copied("policy"), model_type="frob", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n")
    options = ["--data", dataset, "--out", tmp_path / "out", *FEW_STEPS, *["--trust-remote-code"] * trusted]
    done = mmpo("train", "policy", "--model", folder, *options, env=environment(HF_MODULES_CACHE=str(tmp_path / "modules")))
    assert (tmp_path / "was-run").exists() is trusted
    assert done.returncode == 2  # with the code run: it holds no model
    if not trusted:
        assert "brings code of its own, which is not run unless asked: read that code, and give --trust-remote-code" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_limit_beyond_the_positions_that_the_model_really_has_is_refused_naming_both(tokenizer):
    """RoBERTa's 66 rows of positions serve 64 tokens: the first row is never used, and padding has the second."""
    roberta = small_model("Roberta", "reward", max_position_embeddings=66, pad_token_id=1)
    with torch.no_grad():
        assert roberta(input_ids=torch.full((1, 64), 5)).logits.shape == (1, 1)
        with pytest.raises((IndexError, RuntimeError)):
            roberta(input_ids=torch.full((1, 65), 5))
    for model, limit in (
        (roberta, 64),
        (small_model("GPT2", max_position_embeddings=64), 64),
        (tiny_model("policy", tokenizer, size=16, layers=1), 4096),
    ):
        check_model(model, "small", limit)
        said = rf"small takes {limit} tokens at most and --max-length is {limit + 1}: give --max-length {limit} .*as {limit // 2}"
        user_error(said, check_model, model, "small", limit + 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found(value, tokenizer):
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)  # large, and no infinite one: only their sum is infinite in float32
        check_model(model, "good", 100)
        model.model.norm.weight[3] = value
    user_error(r"1 of the tensors of bad hold NaN or infinite values \(model\.norm\.weight\)", check_model, model, "bad", 100)


def test_tokens_that_the_model_has_no_embedding_for_are_named(tokenizer):
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    size = model.get_input_embeddings().num_embeddings
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<extra>"])
    used, beyond = ([SimpleNamespace(completions=[Rendered((1, last), 1)])] for last in (size - 1, size))
    check_ids(used, model, other, "small")  # more tokens than embeddings do no harm that are not used
    said = rf"1 completions have tokens that small does not know, such as '<extra>' \(number {size}\)"
    user_error(said, check_ids, beyond, model, other, "small")


def test_a_reference_numbers_its_tokens_as_the_policy_does(tokenizer, saved, tmp_path):
    model = load_reference(str(saved / "policy"), tokenizer, 100)
    assert type(model).__name__ == "LlamaForCausalLM"
    user_error("takes 4096 tokens at most", load_reference, str(saved / "policy"), tokenizer, 5000)
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "<one more>"})
    check_same_vocabulary(padded, tokenizer, "ours")
    check_same_vocabulary(tokenizer, padded, "ours")
    other = tiny_tokenizer(["zebras zigzag"] * 9, 300)
    said = r"the reference other has another vocabulary than the policy \(\d+ of \d+ numbers mean another token"
    user_error(said, check_same_vocabulary, tokenizer, other, "other")


def test_an_encoder_is_no_policy(tokenizer, tmp_path):
    save_model(tmp_path, small_model("Bert", "reward", vocab_size=len(tokenizer)), tokenizer)
    configured(tmp_path, architectures=["BertModel"])
    user_error(r"is an encoder \(BertLMHeadModel\) and can't be a policy", load_pretrained, "policy", str(tmp_path))
    model, _ = load_pretrained("reward", str(tmp_path))
    assert model.num_labels == 1
    save_model(tmp_path / "body", model.bert, tokenizer)
    user_error(
        r"no score layer.*BertModel\. Give one that `mmpo train reward` wrote$", load_pretrained, "reward", str(tmp_path / "body")
    )


def adapter(kind, tokenizer, folder, base):
    """A LoRA adapter with weights that change something, saved as peft saves it."""
    model, _ = load_pretrained(kind, str(base))
    model = with_random_adapter(add_lora(model, 2, kind))
    model.save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_an_adapters_folder_is_its_base_with_the_adapter_merged(kind, saved, tokenizer, tmp_path):
    trained = adapter(kind, tokenizer, tmp_path / "adapter", saved / kind).eval()
    model, read = load_pretrained(kind, str(tmp_path / "adapter"))
    assert not any("lora" in name for name in model.state_dict())
    assert read.get_vocab() == tokenizer.get_vocab()
    assert all(value.requires_grad for value in model.parameters())
    ids = torch.tensor([[1, 5, 9, 7]])
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids).logits, trained(ids).logits, atol=1e-5)
        assert not torch.allclose(model(ids).logits, load_pretrained(kind, str(saved / kind))[0].eval()(ids).logits, atol=1e-3)


def test_an_adapter_without_its_base_says_so_and_a_policys_is_no_reward_model(saved, tokenizer, tmp_path):
    adapter("policy", tokenizer, tmp_path / "adapter", shutil.copytree(saved / "policy", tmp_path / "base"))
    user_error("no score layer", load_pretrained, "reward", str(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"is an adapter of '.*base', which is needed too: .*there is no such folder"):
        load_pretrained("policy", str(tmp_path / "adapter"))
    configured(tmp_path / "adapter", "adapter_config.json", base_model_name_or_path=None)
    user_error("does not say of which model: fill in base_model_name_or_path", load_pretrained, "policy", str(tmp_path / "adapter"))
