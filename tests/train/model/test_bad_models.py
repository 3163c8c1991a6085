"""Models and tokenizers that can't be trained or measured: refused with what was found, never given random weights silently."""

import copy
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from command import environment, mmpo
from safetensors.torch import load_file, save_file
from training_cases import FEW_STEPS, save_model, small_model
from transformers.utils import logging

from mmpo.pipeline.errors import UserError
from mmpo.train.data import Rendered
from mmpo.train.model import (
    add_lora,
    check_ids,
    check_model,
    check_same_vocabulary,
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


def weights(folder, change):
    """The folder with its weights changed: {name: tensor} in, the same out."""
    values = change(load_file(folder / "model.safetensors"))
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(*names):
    return lambda values: {name: value for name, value in values.items() if name not in names}


def configured(folder, **changes):
    path = folder / "config.json"
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
    with pytest.raises(UserError, match=said):
        load_pretrained(kind, str(saved / folder))
    load_pretrained(kind, str(saved / kind))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_policy_may_be_what_a_reward_model_starts_from(saved):
    model, _ = load_pretrained("reward", str(saved / "policy"), new_head=True)
    assert model.score.weight.shape == (1, 16)


def test_weights_that_are_missing_are_not_made_up(copied):
    folder = weights(copied("policy"), without("model.norm.weight", "model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"lacks 2 of the weights .*model\.layers\.0\.mlp\.up_proj\.weight, model\.norm\.weight"):
        load_pretrained("policy", str(folder))
    folder = weights(copied("reward"), without("model.norm.weight"))
    with pytest.raises(UserError, match=r"lacks 1 of the weights .*half-written"):
        load_pretrained("reward", str(folder), new_head=True)


def test_weights_of_another_shape_are_named(copied):
    with pytest.raises(UserError, match=r"embed_tokens\.weight \(\d+, 16\), the configuration says \(99, 16\)"):
        load_pretrained("policy", str(configured(copied("policy"), vocab_size=99)))
    folder = weights(copied("reward"), lambda values: {**values, "score.weight": torch.zeros(3, 16)})
    with pytest.raises(
        UserError, match=r"score\.weight \(3, 16\), the configuration says \(1, 16\)\. A reward model has one score"
    ):
        load_pretrained("reward", str(folder), new_head=True)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is it whole"),
        (lambda folder: os.truncate(folder / "model.safetensors", 3000), "is it whole"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "what is there: chat_template.jinja, generation_config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (lambda folder: os.truncate(folder / "tokenizer.json", 500), "is it whole"),
        (lambda folder: configured(folder, model_type="frob"), "model type `frob`"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "what is there: nothing"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_half_written_and_missing_folders(broken, said, copied):
    folder = copied("policy")
    broken(folder)
    with pytest.raises(UserError, match=f"cannot load the .*policy.*{said}"):
        load_pretrained("policy", str(folder))


def test_weights_that_would_run_code_on_loading_are_refused(copied, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "was-run"), "w")

    folder = copied("policy")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load"):
        load_pretrained("policy", str(folder))
    assert not (tmp_path / "was-run").exists()


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


def test_a_limit_beyond_the_models_positions_is_refused_naming_both(tokenizer):
    model = small_model("GPT2", max_position_embeddings=64)
    check_model(model, "small", 64)
    with pytest.raises(UserError, match=r"small takes 64 tokens at most and --max-length is 65: give --max-length 64 .*as 32"):
        check_model(model, "small", 65)
    with pytest.raises(UserError, match=r"takes 4096 tokens at most and --max-length is 5000"):
        check_model(tiny_model("policy", tokenizer, size=16, layers=1), "tiny", 5000)


def test_the_limit_is_the_one_that_the_model_really_has():
    """RoBERTa's 66 rows of positions serve 64 tokens: the first row is never used, and padding has the second."""
    model = small_model("Roberta", "reward", max_position_embeddings=66, pad_token_id=1)
    ids = torch.full((1, 64), 5)
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, 1)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 65), 5))
    check_model(model, "roberta", 64)
    with pytest.raises(UserError, match="takes 64 tokens at most"):
        check_model(model, "roberta", 65)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found(value, tokenizer):
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)  # large, and no infinite one: only their sum is infinite in float32
        check_model(model, "good", 100)
        model.model.norm.weight[3] = value
    with pytest.raises(UserError, match=r"1 of the tensors of bad hold NaN or infinite values \(model\.norm\.weight\)"):
        check_model(model, "bad", 100)


def prompts_of(*ids):
    return [SimpleNamespace(completions=[Rendered(ids, 1)])]


def test_tokens_that_the_model_has_no_embedding_for_are_named(tokenizer):
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    size = model.get_input_embeddings().num_embeddings
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<extra>"])
    check_ids(prompts_of(1, size - 1), model, other, "small")  # more tokens than embeddings do no harm that are not used
    with pytest.raises(
        UserError, match=rf"1 completions have tokens that small does not know, such as '<extra>' \(number {size}\)"
    ):
        check_ids(prompts_of(1, size), model, other, "small")


def test_a_reference_numbers_its_tokens_as_the_policy_does(tokenizer, saved, tmp_path):
    model = load_reference(str(saved / "policy"), tokenizer, 100)
    assert type(model).__name__ == "LlamaForCausalLM"
    with pytest.raises(UserError, match="takes 4096 tokens at most"):
        load_reference(str(saved / "policy"), tokenizer, 5000)
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "<one more>"})
    check_same_vocabulary(padded, tokenizer, "ours")
    check_same_vocabulary(tokenizer, padded, "ours")
    other = tiny_tokenizer(["zebras zigzag"] * 9, 300)
    with pytest.raises(
        UserError, match=r"the reference other has another vocabulary than the policy \(\d+ of \d+ numbers mean another token"
    ):
        check_same_vocabulary(tokenizer, other, "other")


def test_an_encoder_is_no_policy(tokenizer, tmp_path):
    save_model(tmp_path, small_model("Bert", "reward", vocab_size=len(tokenizer)), tokenizer)
    configured(tmp_path, architectures=["BertModel"])
    with pytest.raises(UserError, match=r"is an encoder \(BertLMHeadModel\) and can't be a policy"):
        load_pretrained("policy", str(tmp_path))
    assert load_pretrained("reward", str(tmp_path))[0].num_labels == 1


def adapter(kind, tokenizer, folder, base):
    """A LoRA adapter with weights that change something, saved as peft saves it."""
    model, _ = load_pretrained(kind, str(base))
    model = add_lora(model, 2, kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    model.save_pretrained(folder)
    return model


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


def test_an_adapter_without_its_base_says_so(saved, tokenizer, tmp_path):
    adapter("policy", tokenizer, tmp_path / "adapter", shutil.copytree(saved / "policy", tmp_path / "base"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"is an adapter of '.*base', which is needed too: .*there is no such folder"):
        load_pretrained("policy", str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not say of which model: fill in base_model_name_or_path"):
        load_pretrained("policy", str(tmp_path / "adapter"))


def test_a_policys_adapter_is_no_reward_model(saved, tokenizer, tmp_path):
    adapter("policy", tokenizer, tmp_path / "adapter", saved / "policy")
    with pytest.raises(UserError, match="no score layer"):
        load_pretrained("reward", str(tmp_path / "adapter"))
