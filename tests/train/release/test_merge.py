"""`mmpo merge`: the whole model says what base and adapter say together, is written whole or not at all, and only of an adapter."""

import json
import resource
import shutil

import pytest
import torch
from folders import contents
from peft import PeftModel
from training_cases import save_model, small_model, user_error, with_random_adapter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from mmpo.train import evaluate, merge
from mmpo.train.model import add_lora, tiny_model
from mmpo.train.training.trainers import merged_in_full

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def adapter(dataset, tokenizer, train_tiny, tmp_path_factory):
    """The folder of a LoRA policy that has learnt something, of a base beside it."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_model(folder / "base", tiny_model("policy", tokenizer, size=32, layers=2), tokenizer)
    train_tiny("policy", dataset, folder / "policy", model=str(base), lora=4, lora_alpha=12, learning_rate=3e-2, max_steps=8)
    return folder / "policy"


def logits(model) -> torch.Tensor:
    tokens = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def test_the_merged_model_has_the_logits_of_base_and_adapter(adapter, tmp_path):
    done = merge(adapter, tmp_path / "whole")
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "base")
    alone = logits(base)
    both = logits(PeftModel.from_pretrained(base, str(adapter)))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.allclose(logits(whole), both, atol=1e-5) and (both - alone).abs().max() > 1e-2
    assert done["parameters"] == sum(value.numel() for value in whole.parameters()) and done["kind"] == "policy"
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    merge(adapter, tmp_path / "half", dtype="bfloat16")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert half.dtype == torch.bfloat16 and torch.allclose(logits(half).float(), both, atol=0.05)


def test_a_merged_policy_is_measured_as_its_adapter_is(adapter, dataset, tmp_path):
    merge(adapter, tmp_path / "whole")
    found, wanted = (evaluate("policy", str(folder), str(dataset)) for folder in (tmp_path / "whole", adapter))
    assert {name: found[name] for name in ("accuracy", "cross_entropy", "nll")} == pytest.approx(
        {name: wanted[name] for name in ("accuracy", "cross_entropy", "nll")}, abs=1e-5
    )


def test_a_base_that_no_other_place_has_goes_along(dataset, train_tiny, tmp_path):
    train_tiny("policy", dataset, tmp_path / "policy", lora=2, max_steps=2)
    merge(tmp_path / "policy", tmp_path / "whole")
    assert (tmp_path / "whole" / "reference" / "config.json").is_file()
    assert evaluate("policy", str(tmp_path / "whole"), str(dataset))["pairs"]


def test_any_adapter_of_peft_is_merged_a_classifiers_with_its_score(tokenizer, tmp_path):
    base = save_model(tmp_path / "base", small_model("Llama", "reward", vocab_size=len(tokenizer)), tokenizer)
    model = with_random_adapter(add_lora(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), 2, "reward"))
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save.default.weight)
    model.save_pretrained(tmp_path / "adapter")
    assert merge(tmp_path / "adapter", tmp_path / "whole")["kind"] == "reward"
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", num_labels=1)
    assert torch.allclose(logits(whole), logits(model), atol=1e-4)


def test_an_adapter_above_few_bits_is_merged_into_the_published_weights(trainer_of, tiny_options, tokenizer, tmp_path):
    """As for weights of any number of bits: what is saved is the base as it was, the adapter's change and the trained score layer."""
    base = save_model(tmp_path / "base", small_model("Llama", "reward", vocab_size=len(tokenizer)), tokenizer)
    loaded = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = with_random_adapter(add_lora(loaded, 2, "reward"))
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save.default.weight)
    trainer = trainer_of("reward", model)
    (tmp_path / "out").mkdir()
    whole = merged_in_full(trainer, tiny_options("reward", out=tmp_path / "out", model=str(base), lora=2, load_in="4bit"))
    assert torch.allclose(logits(whole), logits(trainer.model), atol=1e-4) and not any(
        "lora" in name for name in whole.state_dict()
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_adapter_is_refused(trained, dataset, train_tiny, adapter, tmp_path):
    assert "holds a whole model, no adapter" in user_error("nothing to merge", merge, trained["policy"], tmp_path / "out")
    train_tiny("reward", dataset, tmp_path / "reward", lora=2, max_steps=1)
    assert "a reward model's adapter is merged at the end of its run" in user_error(
        "", merge, tmp_path / "reward", tmp_path / "out"
    )
    user_error("holds no adapter", merge, dataset, tmp_path / "out")
    user_error("there is no folder", merge, tmp_path / "nowhere", tmp_path / "out")
    user_error("the adapter itself", merge, adapter, adapter)
    user_error("did you mean 'bfloat16'", merge, adapter, tmp_path / "out", dtype="bf16")
    before = contents(dataset)
    user_error("no merge wrote", merge, adapter, dataset)
    assert contents(dataset) == before and not (tmp_path / "out").exists()
    merge(adapter, tmp_path / "out")
    user_error("it was merged", merge, tmp_path / "out", tmp_path / "two")
    merge(adapter, tmp_path / "out")  # an earlier merge is replaced


def test_an_adapter_whose_base_is_gone_is_refused(adapter, tmp_path):
    alone = shutil.copytree(adapter, tmp_path / "policy")
    config = json.loads((alone / "adapter_config.json").read_text())
    (alone / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    assert str(tmp_path / "gone") in user_error("which is needed too", merge, alone, tmp_path / "out")


def test_a_full_disk_leaves_nothing_or_the_earlier_merge(adapter, tmp_path):
    """Files of at most 40 kB: the weights don't fit."""

    def without_room() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        try:
            user_error("nothing was written", merge, adapter, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    without_room()
    assert list(tmp_path.iterdir()) == []
    merge(adapter, tmp_path / "out")
    before = contents(tmp_path / "out")
    without_room()
    assert contents(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]
