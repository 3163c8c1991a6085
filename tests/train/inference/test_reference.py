"""The reference cache: what a value is kept under, what is computed and what is not, LoRA, and files that are not ours."""

import pickle
import sqlite3
import struct
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
import torch
from peft import PeftModel
from training_cases import full_memory, prompts_of, user_error, with_random_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmpo.pipeline.errors import MmpoError
from mmpo.train.inference import cached_logprobs, default_folder
from mmpo.train.model import ExecutionPlan, Fingerprint, add_lora, fingerprint_of, tiny_model, tiny_tokenizer


@pytest.fixture
def model(tokenizer):
    return tiny_model("policy", tokenizer, size=32, layers=1)


@pytest.fixture
def fill(model, tokenizer):
    """Fills the reference of prompts; returns it as one array in the order of the prompts."""

    def filled(prompts, cache, own=model, **options):
        options = {"tokenizer": tokenizer, "tokens": 256, "pad_token": 0, "device": "cpu", "plan": ExecutionPlan(), **options}
        return np.concatenate([prompt.reference for prompt in cached_logprobs(own, prompts, cache, **options)])

    return filled


def computed_tokens(model, run):
    """Tokens that went through the model while `run` ran."""
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0].numel()))
    try:
        run()
    finally:
        hook.remove()
    return sum(seen)


def kept_in(path):
    """Log-probabilities by key."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT key, logprob FROM logprobs"))


def test_the_fingerprint_names_what_differs_and_only_that(model, tokenizer, pairs):
    other = fingerprint_of(tiny_model("policy", tokenizer, size=32, layers=1, seed=1), tokenizer)
    base = fingerprint_of(model, tokenizer)
    assert [text.split()[0] for text in other.differences(base.as_dict())] == ["weights"]
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 5e5}  # as a config file with another base would
    assert [text.split()[0] for text in fingerprint_of(model, tokenizer).differences(base.as_dict())] == ["config"]
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    retrained = tiny_tokenizer(["other words make other merges"] * 9, 400)
    assert [text.split()[0] for text in fingerprint_of(model, retrained).differences(base.as_dict())] == ["tokenizer"]
    renamed = pickle.loads(pickle.dumps(tokenizer))
    renamed.chat_template += " "
    assert [text.split()[0] for text in fingerprint_of(model, renamed).differences(base.as_dict())] == ["template"]
    rounded = fingerprint_of(model, tokenizer, bf16=True)
    assert rounded.differences(base.as_dict()) == ["precision full, this run's bf16"]
    assert len({x.name for x in (base, other, rounded)}) == 3
    seen = {base.weights}
    for count, value in enumerate(model.parameters(), start=2):  # every tensor of the weights counts, to its last number
        with torch.no_grad():
            value.view(-1)[-1] += 1e-3
        seen.add(fingerprint_of(model, tokenizer).weights)
        assert len(seen) == count


def test_saving_loading_and_using_change_no_fingerprint(model, tokenizer, tmp_path):
    before = fingerprint_of(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, own = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    own(["a", "a longer text"], padding=True, truncation=True, max_length=3)  # stays behind in the tokenizer
    own.pad_token = own.eos_token
    loaded.config.use_cache = False
    loaded.config.pad_token_id = 1
    assert fingerprint_of(loaded.train(), own) == before


def test_a_lora_policy_has_its_bases_fingerprint_and_values(model, tokenizer, prompts, fill, tmp_path):
    before, values = fingerprint_of(model, tokenizer), fill(prompts, tmp_path)
    policy = with_random_adapter(add_lora(model, 4, "policy"))
    flags = [value.requires_grad for value in policy.parameters()]
    assert fingerprint_of(policy, tokenizer) == before
    assert computed_tokens(policy, lambda: fill(prompts, tmp_path, policy)) == 0
    apart = fill(prompts, tmp_path / "apart", policy)
    assert apart == pytest.approx(values, abs=1e-5)
    assert flags == [value.requires_grad for value in policy.parameters()]
    with_adapter = fill(prompts, tmp_path / "on", policy.get_base_model())  # its layers act: another model
    assert np.abs(with_adapter - values).max() > 0.1
    policy.merge_adapter()
    with pytest.raises(MmpoError, match="unmerge_adapter"):
        fingerprint_of(policy, tokenizer)


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_trained_copies_of_modules_and_adapters_that_were_loaded(model, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    model.save_pretrained(tmp_path / "base")
    before = fingerprint_of(model, tokenizer)
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=True, task_type="CAUSAL_LM")
    policy = with_random_adapter(get_peft_model(model, config))
    assert fingerprint_of(policy, tokenizer) == before
    policy.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert fingerprint_of(again, tokenizer) == before
    # a model that was loaded with its adapter is another reference
    loaded, injected = (AutoModelForCausalLM.from_pretrained(tmp_path / "base") for _ in range(2))
    with_random_adapter(add_lora(loaded, 4, "policy")).save_pretrained(tmp_path / "lora")
    injected.load_adapter(str(tmp_path / "lora"))
    assert hasattr(injected, "peft_config")
    assert "weights" in " ".join(fingerprint_of(injected, tokenizer).differences(before.as_dict()))


def test_the_second_run_computes_nothing(model, prompts, pairs, tokenizer, fill, tmp_path, capsys):
    first = fill(prompts, tmp_path)
    assert f"0 of {len(first)} completions are in {tmp_path}" in capsys.readouterr().err
    assert computed_tokens(model, lambda: fill(prompts, tmp_path)) == 0
    assert f"{len(first)} of {len(first)} completions are in" in capsys.readouterr().err
    assert np.array_equal(fill(prompts, tmp_path), first)
    turned = prompts_of(pairs.take(list(range(pairs.num_rows))[::-1]).slice(0, 40), tokenizer, p=0.9)
    assert computed_tokens(model, lambda: fill(turned[::-1], tmp_path)) == 0  # other targets, pairs, order
    assert computed_tokens(model, lambda: fill(prompts, tmp_path, plan=None, tokens=999)) == 0  # another layout, no probe
    plain = cached_logprobs(model, prompts, False, tokens=64, pad_token=0, device="cpu")  # probes, and takes the tree
    assert np.concatenate([prompt.reference for prompt in plain]) == pytest.approx(first, abs=1e-4)


def test_a_partial_cache_is_completed_by_exactly_what_is_missing(model, prompts, fill, tmp_path):
    some = [replace(prompt, completions=prompt.completions[::2]) for prompt in prompts[:9]]
    rest = [replace(prompt, completions=prompt.completions[1::2]) for prompt in prompts[:9]] + prompts[9:]
    whole = fill(prompts, tmp_path / "whole")
    kept = fill(some, tmp_path / "part")
    missing = computed_tokens(model, lambda: fill(prompts, tmp_path / "part"))
    assert missing == computed_tokens(model, lambda: fill(rest, tmp_path / "rest")) > 0
    assert fill(prompts, tmp_path / "part") == pytest.approx(whole, abs=1e-4)
    assert np.array_equal(fill(some, tmp_path / "part"), kept)


def test_an_interrupted_run_keeps_what_it_had(model, prompts, fill, tmp_path):
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt

    hook = model.get_input_embeddings().register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        fill(prompts, tmp_path / "x.sqlite", tokens=16)
    hook.remove()
    saved = len(kept_in(tmp_path / "x.sqlite"))
    assert 0 < saved < sum(len(prompt.completions) for prompt in prompts)
    assert fill(prompts, tmp_path / "x.sqlite") == pytest.approx(fill(prompts, tmp_path / "y.sqlite"), abs=1e-4)


def test_values_that_are_not_finite_are_told_and_never_kept(model, prompts, fill, tmp_path):
    with torch.no_grad():
        model.get_input_embeddings().weight[prompts[0].completions[0].ids[-2]] = float("nan")
    user_error(r"no finite log-probability \(prompt_id [0-9a-f]{32}", fill, prompts, tmp_path / "x.sqlite")
    assert len(kept_in(tmp_path / "x.sqlite")) == 0


def test_out_of_memory_names_the_setting(model, prompts, fill, tmp_path):
    model.get_input_embeddings().register_forward_hook(full_memory)
    assert "set tokens_per_batch lower" in user_error("", fill, prompts, tmp_path)


def test_the_default_place(prompts, fill, monkeypatch, tmp_path, own_cache):
    assert default_folder() == own_cache / "reference"
    monkeypatch.setenv("MMPO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fill(prompts, None)
    assert [path.suffix for path in (tmp_path / "cache" / "mmpo" / "reference").glob("[!.]*")] == [".sqlite"]


def test_what_earlier_releases_kept_is_found_again(prompts, fill, tmp_path):
    """Both digests are part of the format: where this fails, raise VERSION in fingerprint.py."""
    assert Fingerprint("a", "b", "c", "d", "full", 1).name == "9eb35fa49106feaff2484e9363aac91a"
    values = fill(prompts, tmp_path / "x.sqlite")
    items = [item for prompt in prompts for item in prompt.completions]
    packed = [struct.pack(f"<{1 + len(item.ids)}q", item.start, *item.ids) for item in items]
    keys = [blake2b(one, digest_size=16).digest() for one in packed]
    assert kept_in(tmp_path / "x.sqlite") == dict(zip(keys, values, strict=True))  # and nothing else


def test_two_completions_of_the_same_tokens_are_one_value(prompts, fill, tmp_path, capsys):
    """As those that were cut at the same place, and in prompts that occur twice: counted, computed and kept once, given to all."""
    twice = [replace(prompt, completions=[*prompt.completions, prompt.completions[0]]) for prompt in [*prompts, *prompts[:4]]]
    distinct = sum(len(prompt.completions) for prompt in prompts)
    values = fill(twice, tmp_path / "kept.sqlite")
    assert f"computed {distinct} of {distinct} completions" in capsys.readouterr().err
    assert len(kept_in(tmp_path / "kept.sqlite")) == distinct
    assert fill(twice, tmp_path / "kept.sqlite").tolist() == values.tolist()
    assert "computed" not in capsys.readouterr().err  # where there was nothing to do
    place = 0
    for prompt in twice:
        assert values[place] == values[place + len(prompt.completions) - 1]
        place += len(prompt.completions)
