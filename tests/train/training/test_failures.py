"""Runs that can't go on: memory that really runs out, models that really overflow; what is said, and what stays."""

import re
import resource

import pytest
import torch
from command import mmpo
from process_cases import said_once, spoiled
from training_cases import FEW_STEPS, full_memory, user_error

from mmpo.pipeline.errors import UserError
from mmpo.train.messages import disk_full, memory_advice, memory_error, not_finite, out_of_memory
from mmpo.train.model import load_pretrained, tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "anywhere"])
def test_out_of_memory_is_one_message_that_names_the_setting(where, processes, dataset, tmp_path):
    """The limit is the process's address space: real allocations fail.

    In a step in float32 only: the kernels of bfloat16 of a CPU that multiplies in it end the process when an own allocation fails.
    """
    sizes = [*FEW_STEPS, "--tiny-layers", "2", "--pairs-per-step", "200"]
    sizes += ["--tiny-size", "512"] if where == "step" else ["--tiny-size", "2048", "--bf16"]
    command = ["train", "reward", "--data", dataset, "--out", tmp_path / "out", *sizes]
    done = spoiled(processes, "limit_in_steps(40)" if where == "step" else "limit(120)", *command, world=1)
    tokens = "set tokens_per_batch lower (--tokens-per-batch, now 4096)"
    message = said_once(done, tokens, "--gradient-checkpointing", "--lora", "FSDP")
    assert message.startswith("error: the memory ran out ")
    assert ("--bf16" in message) == (where == "step")  # proposed where it is off
    if where == "step":
        assert "in step 1, in a pass of " in message
        assert "tokens over the completions of " in message


def test_what_counts_as_out_of_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**36, before[1]))
    try:
        with pytest.raises(RuntimeError) as error:
            torch.empty(2**40, dtype=torch.uint8)  # a terabyte, refused by the CPU's allocator
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert out_of_memory(error.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_advice_names_only_what_is_not_set_yet():
    everything = memory_advice(100, checkpointing=True, bf16=True, lora=True)
    assert [line.partition(" (")[0] for line in everything] == [
        "set tokens_per_batch lower",
        "split the model over several devices",
    ]
    nothing = memory_advice(100, checkpointing=False, bf16=False, lora=False)
    assert len(nothing) == 5
    started = memory_advice(100, checkpointing=False, bf16=False, lora=False, started=True)
    assert [line.endswith("; then give another --out or --no-resume)") for line in started] == [False, False, True, True, False]
    assert "now 100" in str(memory_error("here", nothing))


def test_one_completion_that_is_larger_than_a_batch_needs_another_setting(trainer_of):
    """A completion is never cut, so that fewer tokens in a batch do not help."""
    trainer = trainer_of(tokens_per_batch=8)
    trainer.own_reference = False
    trainer.model.get_input_embeddings().register_forward_hook(full_memory)
    said = user_error("", trainer.train)
    assert re.search(r"set max_length lower \(--max-length\): one completion alone has \d+ tokens, or recompute", said)


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_loss_that_is_not_finite_stops_with_ids_and_the_last_checkpoint_stays(kind, train_tiny, record_of, dataset, tmp_path):
    """A learning rate that throws the weights out of float32's range within a few steps."""
    wild = {"learning_rate": 1e18, "schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    out = tmp_path / "out"
    message = user_error("", train_tiny, kind, dataset, out, epochs=20, save_steps=1, eval_split=None, **wild)
    assert any(what in message for what in ("the loss is", "the norm of the gradients is", "the weights are not finite"))
    assert " at step " in message or " after step " in message
    assert "Lower the learning rate" in message
    assert "all prompts of the step: " in message
    checkpoints = list(out.glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        model, _ = load_pretrained(kind, str(checkpoint))
        assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert record_of(out)["finished"] is False


def test_the_prompts_whose_values_are_not_finite_are_named_first(trainer_of, tokenizer, tmp_path):
    """Of a policy with one token whose embedding is infinite; in training and in measuring."""
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # as an output the token is everywhere
    trainer = trainer_of(model=model, run={"save_steps": 1}, tokens_per_batch=60)
    counts: dict[int, list[str]] = {}
    for prompt in trainer.prompts:
        for token in {token for item in prompt.completions for token in item.ids}:
            counts.setdefault(token, []).append(prompt.prompt_id)
    token = min((token for token in counts), key=lambda token: (len(counts[token]), token))
    assert len(counts[token]) == 1
    trainer.own_reference = False
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("inf")
    culprit = counts[token][0]
    trainer.pairs_per_step = 10**6
    user_error(rf"the loss is nan at step 1; prompts with pairs whose values are not finite: {culprit}; all prompts", trainer.train)
    assert not list(tmp_path.glob("checkpoint-*"))
    said = rf"\d+ of \d+ pairs have no finite value, of the prompts {culprit}\. Lower"
    user_error(said, trainer.predict_pairs, trainer.prompts)


def test_gradients_that_are_not_finite_change_nothing(trainer_of):
    """The loss may be finite and its gradient not."""
    trainer = trainer_of(run={"save_steps": 1})
    model = trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.get_input_embeddings().weight.register_hook(lambda grad: grad * float("nan"))
    user_error("the norm of the gradients is nan at step 1; all prompts of the step", trainer.train)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_many_ids_are_cut():
    message = str(not_finite("the loss is inf", 3, [], [f"p{i}" for i in range(20)], "Do this."))
    assert message == "the loss is inf at step 3; all prompts of the step: p0, p1, p2, p3, p4, p5, p6, p7 and 12 more. Do this."


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_checkpoints_before_it_stay(dataset, same_weights, tmp_path):
    """A limit on the size of a file, which the third checkpoint's optimizer does not pass."""
    command = ["train", "reward", "--data", dataset, *FEW_STEPS, "--save-steps", "2", "--max-steps", "6", "--no-dropout"]
    assert mmpo(*command, "--out", tmp_path / "whole").returncode == 0
    done = mmpo(*command, "--out", tmp_path / "out", disk=40_000)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the disk is full, or files may not be so large" in errors[0]
    assert mmpo(*command, "--out", tmp_path / "out").returncode == 0  # what was half-written is in nobody's way
    assert same_weights("reward", tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:844] . PytorchStreamWriter failed writing file data/3: file write failed"
            ),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("cannot write x: the disk is full; nothing was written"), False),
    ],
)
def test_what_counts_as_a_full_disk(error, full):
    assert disk_full(error) == full
