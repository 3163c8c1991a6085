"""Dropout and recomputing in several passes, scores and the first step in bfloat16, epochs, pad tokens, a full disk."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.llama import modeling_llama

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import BATCHES
from mmpo.train.inference import with_reference
from mmpo.train.model import (
    ExecutionPlan,
    body_of,
    choose_plan,
    completion_values,
    inputs_of,
    probe_group,
    recomputing_exactly,
    tiny_model,
)
from mmpo.train.options import TrainOptions
from mmpo.train.training import PolicyTrainer, StepPasses, own_pad_token, training_arguments


def test_the_second_pass_of_a_part_has_the_dropout_of_its_look(pairs, tokenizer, tmp_path, monkeypatch):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 512}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1, **sizes))
    arguments = training_arguments(TrainOptions("policy", out=str(tmp_path), max_steps=1))
    options = {"gamma": 1.0, "dropout": True, "tokens_per_batch": 60}
    trainer = PolicyTrainer(model, arguments, pairs, processing_class=tokenizer, **options)
    step = trainer.make_step(trainer.prompts)
    looks, passes = {}, {}
    plain = StepPasses._values

    def values(self, part):
        found = plain(self, part)
        (passes if torch.is_grad_enabled() else looks).setdefault(id(part), []).append(found.detach())
        return found

    monkeypatch.setattr(StepPasses, "_values", values)
    trainer.create_optimizer()
    trainer.training_step(trainer.model, step)
    parts = [part for batch in step.batches if len(batch.parts) > 1 for part in batch.parts]
    assert len(parts) > 2
    for part in parts:
        assert torch.equal(looks[id(part)][0], passes[id(part)][0])
    with torch.no_grad():  # and not because there were no masks
        again = trainer.values(trainer.model, parts[0])
    assert (again - looks[id(parts[0])][0]).abs().max() > 1e-3


def test_scores_under_autocast_are_not_rounded(tokenizer):
    model = tiny_model("reward", tokenizer, size=32, layers=1).eval()
    batch = BATCHES["rows"].build([probe_group(len(tokenizer), 40)], 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = completion_values(model, "reward", batch, ExecutionPlan())
        body = body_of(model)
        states = body(**inputs_of(body, batch, ExecutionPlan())).last_hidden_state.flatten(0, 1)[batch.last]
    expected = states.double() @ model.score.weight.double().T
    assert (found - expected[:, 0]).abs().max() <= 1e-6
    assert not torch.equal(found, found.bfloat16().float())


def test_the_epoch_is_the_share_of_the_data_seen_whatever_the_number_of_steps(pairs, tokenizer, tmp_path):
    epochs = {}
    for most in (0, 3, 9):
        options = {"max_steps": most} if most else {"epochs": 2}
        arguments = training_arguments(TrainOptions("policy", out=str(tmp_path), **options))
        model = tiny_model("policy", tokenizer, size=16, layers=1)
        trainer = PolicyTrainer(model, arguments, pairs, processing_class=tokenizer, gamma=1.0, pairs_per_step=30)
        trainer.train()
        epochs[most] = trainer.state.log_history[-1]["epoch"]
        shares = sum(len(step) for step in trainer.plan()) / len(trainer.prompts)
        assert abs(epochs[most] - shares) < 0.3
    assert epochs[0] == 2


def test_the_pad_token_is_set_in_the_text_configuration_too(tokenizer):
    tokenizer, model = copy.deepcopy(tokenizer), tiny_model("reward", tokenizer, size=16, layers=1)
    inner = copy.deepcopy(model.config)
    inner.pad_token_id = None
    tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config = lambda *_, **__: inner
    own_pad_token(model, tokenizer)
    assert inner.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


class Forgetting(modeling_llama.LlamaDecoderLayer):
    """Hands nothing but the essentials on where activations are recomputed."""

    def forward(self, hidden_states, **options):
        if self.gradient_checkpointing and self.training:
            options.pop("segments", None)
        return super().forward(hidden_states, **options)


def test_a_model_that_recomputes_without_all_arguments_gets_masks(tokenizer, monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", Forgetting)
    model = tiny_model("policy", tokenizer, size=32, layers=2).eval()
    assert choose_plan(model, "policy", 40).layout == "packed"
    model.set_attn_implementation("sdpa")
    plan = choose_plan(model, "policy", 40, checkpointing=True)
    assert (plan.layout, model.config._attn_implementation) == ("tree", "sdpa")
    monkeypatch.undo()
    assert choose_plan(tiny_model("policy", tokenizer, size=32), "policy", 40, checkpointing=True).layout == "packed"


def test_recomputing_exactly_leaves_no_trace(tokenizer):
    model = tiny_model("policy", tokenizer, size=32, layers=2).eval()
    before = [dict(vars(module)) for module in model.modules()]
    with recomputing_exactly(model):
        assert [layer.training for layer in model.model.layers] == [True, True]
        assert not model.model.layers[0].mlp.training
    assert [dict(vars(module)).keys() for module in model.modules()] == [names.keys() for names in before]
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("bf16", "allowed"), [(True, 0.08), (False, 0.0008)])
def test_the_first_step_may_be_off_by_the_rounding_of_each_token(bf16, allowed, pairs, tokenizer, tmp_path):
    """Whose sum grows with the root of their number, however likely the completion is."""
    arguments = training_arguments(TrainOptions("policy", out=str(tmp_path), bf16=bf16, max_steps=1))
    model = tiny_model("policy", tokenizer, size=32, layers=1)
    trainer = PolicyTrainer(model, arguments, pairs, processing_class=tokenizer, gamma=1.0)
    part = trainer.make_step(trainer.prompts).batches[0].parts[0]
    with torch.no_grad():
        model.lm_head.weight.mul_(0.0)  # every log-probability is the same
        own = trainer.values(trainer.model, part)
    trainer.prompts = with_reference(trainer.prompts, [np.zeros(len(prompt.completions)) for prompt in trainer.prompts])
    step = trainer.make_step(trainer.prompts)
    shift = part.counts**0.5
    step.batches[0].reference.copy_(own + allowed * shift)
    trainer.check_first_step(step)
    step.batches[0].reference.copy_(own + (5 * allowed + (0.05 if bf16 else 1e-5) * -own / shift) * shift)
    with pytest.raises(UserError, match=r"first-step check failed.*delete that reference cache.*--dropout") as failure:
        trainer.check_first_step(step)
    assert ("without --bf16" in str(failure.value)) == bf16


OPTIONS = "tiny_size=32, tiny_vocab=400, pairs_per_step=10, tokens_per_batch=60, max_steps=3, data=sys.argv[1], out=sys.argv[2]"
REDUCED = f"""
import mmpo.train.training.trainer as module
from mmpo.train.options import TrainOptions
from mmpo.train.training import train_policy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

reduced, passes = [], []
step, backward = module.MarginTrainer.training_step, module.MarginTrainer.backward
def training_step(self, model, inputs, *rest):
    if not self.state.global_step:
        model.register_comm_hook(None, lambda state, bucket: reduced.append(1) or allreduce_hook(state, bucket))
    return step(self, model, inputs, *rest)
def counted(self, *arguments):
    passes.append(1)
    return backward(self, *arguments)
module.MarginTrainer.training_step, module.MarginTrainer.backward = training_step, counted
train_policy(TrainOptions("policy", {OPTIONS}))
print(len(reduced), len(passes))
"""
FULL = f"""
from mmpo.pipeline.errors import UserError
from mmpo.train.inference import reference
from mmpo.train.inference.reference_store import ReferenceStore
from mmpo.train.options import TrainOptions
from mmpo.train.training import train_policy

add = ReferenceStore.add
def full(self, keys, values):
    if len(keys):
        raise UserError("disk full")
    add(self, keys, values)
ReferenceStore.add, reference.SAVE_SECONDS, reference.BATCHES_PER_CHUNK = full, 0.0, 1
reference.cached_logprobs.__kwdefaults__["save_seconds"] = 0.0
try:
    train_policy(TrainOptions("policy", {OPTIONS}, reference_cache=sys.argv[3]))
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def data(pairs_of, folder_of, tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("review") / "pairs", train=pairs_of(10, [2, 8, 3, 5], seed=1))


@pytest.mark.slow
def test_processes_add_up_their_gradients_once_a_step(processes, data, tmp_path):
    for done in processes(REDUCED, str(data), str(tmp_path / "out")):
        assert done.returncode == 0, done.stderr[-3000:]
        reduced, passes = map(int, done.stdout.split()[-2:])
        assert reduced == 3
        assert passes > 6


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_midway_stops_all_processes(processes, data, tmp_path):
    for done in processes(FULL, str(data), str(tmp_path / "out"), str(tmp_path / "cache"), seconds=120):
        assert done.returncode == 0, done.stderr[-3000:]
        assert "disk full" in done.stdout


NARROW = """
import mmpo.train.model.probe as module
from mmpo.train.model import ExecutionPlan, tiny_model, tiny_tokenizer

module._candidates = lambda *_: [ExecutionPlan("tree", attention="mask"), ExecutionPlan("packed", attention="segments")]
difference = module._Probe._difference
def failing(self, plan, own):
    if rank and plan.attention == "mask":
        raise RuntimeError("not here")
    return difference(self, plan, own)
module._Probe._difference = failing
model = tiny_model("policy", tiny_tokenizer(["a cat"], 300), size=32)
print(module.choose_plan(model, "policy", 40, device="cuda", training=True).attention)
"""


@pytest.mark.slow
def test_processes_take_what_is_exact_in_all_of_them(processes):
    done = processes(NARROW, seconds=60)
    assert [one.stdout.split()[-1:] for one in done] == [["segments"]] * 2, done[1].stderr[-2000:]
