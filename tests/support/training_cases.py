"""What the tests of training share: PAIRS tables with a signal, small models of any family, and memory that is full."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import PAIRS, completion_id, prompt_id, with_metadata
from mmpo.train.data import Rendered, Renderer, prepare

TEXT = "the cat sat on a mat and looked at some birds in trees while rain fell over hills far away from town"
WORDS = TEXT.split()
CLASSES = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
FEW_STEPS = ["--tiny-size", "16", "--tiny-layers", "1", "--tiny-vocab", "400", "--pairs-per-step", "10"]
"""Options of `mmpo train` for a run of a second or two."""
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 8, "vocab_size": 120, "num_labels": 1, "max_position_embeddings": 256}
# Weights this large make a token that is seen by mistake show in the first digits, not in the last.
SIZES |= {"initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)


def small_model(family: str, kind: str = "policy", seed: int = 1, **options: Any) -> Any:
    """A model of a family of transformers ("Llama", "GPT2", ...) with random weights. options: of its configuration, None leaves a
    size to the family.
    """
    given = {name: value for name, value in {**SIZES, **NO_DROPOUT, **options}.items() if value is not None}
    torch.manual_seed(seed)
    return CLASSES[kind].from_config(getattr(transformers, f"{family}Config")(**given))


def save_model(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A folder that holds both."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_pairs(prompts: int, completions: list[int], seed: int = 0) -> pa.Table:
    """Prompts with so many completions each (cycled) and all their pairs; the grade counts the word "good"."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        prompt = [{"role": "user", "content": f"Question {seed} {number}: " + " ".join(random.choice(WORDS, 6))}]
        identity = prompt_id(prompt)
        replies = []
        for place in range(completions[number % len(completions)]):
            good = place % 5
            words = [*random.choice(WORDS, int(random.integers(3, 14))), *["good"] * good, *["bad"] * (4 - good)]
            text = f"{place} " + " ".join(random.permutation(words))
            replies.append((completion_id(identity, text), [{"role": "assistant", "content": text}], float(good)))
        for i in range(len(replies)):
            for j in range(i):
                high, low = sorted((replies[i], replies[j]), key=lambda item: (-item[2], item[0]))
                rows.append(
                    {
                        "prompt_id": identity, "chosen_id": high[0], "rejected_id": low[0],
                        "prompt": prompt, "chosen": high[1], "rejected": low[1],
                        "score_chosen": high[2], "score_rejected": low[2], "quality_margin": high[2] - low[2],
                        "margin_se": 0.5 if (i + j) % 2 else None, "preferring": int(high[2] > low[2]), "raters": 1,
                        "kind": "ai", "chosen_model": "a", "rejected_model": "b", "source": f"source-{number % 2}",
                    }
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=with_metadata(PAIRS, {}))


def prompts_of(table: pa.Table, tokenizer: Any, p: float = 0.7) -> list[Any]:
    """The rendered prompts of a PAIRS table, with the same target for all pairs."""
    return prepare(table, np.full(table.num_rows, p), Renderer(tokenizer, 1024, 512)).prompts


def branching_groups(vocabulary: int, lengths: Iterable[int]) -> list[list[Rendered]]:
    """A prompt for each length, with four completions of which two share their beginning."""
    random = np.random.default_rng(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in random.integers(0, vocabulary, count))

    groups = []
    for length in lengths:
        prompt, half = draw(length), draw(length // 2)
        replies = [draw(length), (*half, *draw(length // 3)), (*half, *draw(5)), draw(3)]
        groups.append([Rendered((*prompt, *reply), length) for reply in replies])
    return groups


def with_random_adapter(model: Any, std: float = 1.0) -> Any:
    """The model with the weights of its adapters as after training: they change something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=std)
    return model


class Operations(TorchDispatchMode):
    """The names of the operations that torch runs, and the number of elements of the largest tensor that any gives."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function))
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return result


class AtStep(TrainerCallback):
    """Does something in the middle of a step, counted from 0."""

    def __init__(self, step: int, work: Callable[[], object]):
        self.step, self.work = step, work

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.work()


def prefixes(sequences: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """All distinct ones: the nodes of the sequences' trie. Sorted they are in depth-first order."""
    return {sequence[: length + 1] for sequence in sequences for length in range(len(sequence))}


def user_error(said: str, call: Callable[..., object], *given: Any, **named: Any) -> str:
    """The message of the UserError that a call must end with; the pattern `said`, where it is not "", is found in it."""
    with pytest.raises(UserError, match=said or None) as error:
        call(*given, **named)
    return str(error.value)


def full_memory(*_: object, **__: object) -> NoReturn:
    """In place of a function: the memory of the device is full."""
    raise torch.OutOfMemoryError("CUDA out of memory")
