"""What the two sides of `train_speed.py` share inside their processes: arguments, pace, counts, memory and the channel to the script.

A side is a process that lives through all runs of one measurement: it loads, says so, waits; computes its reference values, says so, waits;
and then trains without an end, an epoch a run, standing still between two of them until it is told to go on. So runs of several sides can
be interleaved without paying for imports, tokenising and the reference each time.
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

__all__ = ["Channel", "Counts", "Memory", "Pace", "Spec", "counting", "shared_arguments", "synchronize", "warm_up"]


@dataclass(frozen=True)
class Spec:
    """What a side is told, as JSON.

    task: policy or reward. model: folder. table: a Parquet file of PAIRS. order: random, or sequential as the table lies. epochs: runs.
    scratch: folder to write into. pairs_per_step: of one optimizer step. batch: pairs of one padded batch. trace: whether loss and
    gradient of every step are told. follow: of the side that follows another's trace, the file that will hold the pairs of each of its
    steps. prompt_limit: tokens of the longest prompt. bf16: whether to compute in bfloat16, which CUDA always does. lora: rank of an
    adapter that is trained instead of the model, 0 for none.
    """

    task: str
    model: str
    table: str
    scratch: str
    epochs: int
    pairs_per_step: int
    batch: int
    learning_rate: float
    device: str = "cpu"
    order: str = "random"
    trace: bool = False
    follow: str = ""
    prompt_limit: int = 512
    bf16: bool = False
    lora: int = 0

    @classmethod
    def read(cls) -> "Spec":
        """From the file that the command line names."""
        return cls(**json.loads(Path(sys.argv[1]).read_text()))


class Channel:
    """One JSON object a line to the script on what was standard output; whatever else prints goes to standard error."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **values: Any) -> None:
        self.out.write(json.dumps(values) + "\n")

    def wait(self) -> None:
        """Until the script says so; ends the process where the script is gone."""
        if not sys.stdin.readline():
            sys.exit(0)


class Memory:
    """The process's resident memory in MiB, or the accelerator's."""

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> float:
        return torch.cuda.memory_allocated() / 2**20 if self.device == "cuda" else _status("VmRSS")

    def forget_peak(self) -> None:
        """What was freed goes back to the system, so that the next peak is that of what follows."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else _status("VmHWM")


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


@dataclass
class Counts:
    """Of the current run: pairs trained on, tokens that went through the model, optimizer steps, losses of the steps."""

    pairs: int = 0
    tokens: int = 0
    steps: int = 0
    losses: list[Tensor] = field(default_factory=list)


class Pace(TrainerCallback):
    """Stands still before every run; a run lasts from being told to go to the end of its last step, loading its data included."""

    def __init__(self, channel: Channel, counts: Counts, last_steps: list[int], spec: Spec) -> None:
        self.channel, self.counts, self.last_steps, self.spec = channel, counts, last_steps, spec
        self.memory, self.started, self.cpu = Memory(spec.device), 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.max_steps != self.last_steps[-1]:
            raise RuntimeError(f"the trainer plans {state.max_steps} steps, {self.last_steps[-1]} were expected")
        self.memory.forget_peak()
        self._go()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.counts.steps += 1
        if state.global_step not in self.last_steps:
            return
        synchronize(self.spec.device)
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        self.channel.say(
            seconds=seconds,
            cpu=cpu,
            pairs=self.counts.pairs,
            tokens=self.counts.tokens,
            steps=self.counts.steps,
            peak=self.memory.peak(),
        )
        if state.global_step != self.last_steps[-1]:
            self._go()

    def _go(self) -> None:
        self.counts.pairs = self.counts.tokens = self.counts.steps = 0
        self.channel.wait()
        self.started, self.cpu = time.perf_counter(), time.process_time()


def counting(base: Any, counts: Counts, size: Callable[[Any], tuple[int, int]], *, keep_losses: bool) -> Any:
    """The trainer class, which also counts: `size` says how many pairs and tokens a training step's inputs hold."""

    class Counting(base):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
            pairs, tokens = size(inputs)
            counts.pairs += pairs
            counts.tokens += tokens
            loss = super().training_step(model, inputs, *rest, **named)
            if keep_losses:
                counts.losses.append(loss.detach())
            return loss

    return Counting


def shared_arguments(spec: Spec) -> dict[str, Any]:
    """Every argument of transformers' TrainingArguments on which speed or result depends, the same on both sides."""
    return {
        "output_dir": spec.scratch,
        "num_train_epochs": spec.epochs,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "weight_decay": 0.01,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 1.0,
        "bf16": spec.bf16 or spec.device == "cuda",
        "use_cpu": spec.device == "cpu",
        "gradient_checkpointing": False,
        "logging_steps": 1 if spec.trace else 10,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }


def warm_up(model: torch.nn.Module, device: str) -> None:
    """A forward and a backward pass over random tokens, so that no run pays for the first use of threads and kernels."""
    ids = torch.randint(10, 1000, (8, 256), device=device)
    model.train()
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().mean().backward()
    model.zero_grad(set_to_none=True)


def synchronize(device: str) -> None:
    """Until the accelerator has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
