"""Runs of `mmpo train` in one process or in several at once, one of which is spoiled on the way; and what they say of it."""

from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

SCRIPT = """
import resource, signal, torch
import mmpo.train.training.run as run_module  # what loading the libraries takes is not limited
import mmpo.train.training.trainer as trainer_module
from mmpo.cli.main import run
from mmpo.pipeline.errors import UserError
from mmpo.train.training import TrainingProgress

def limit(megabytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))

def limit_in_steps(megabytes):
    plain = trainer_module.memory_guard
    def guarded(*arguments):
        limit(megabytes)
        return plain(*arguments)
    trainer_module.memory_guard = guarded

def missing_data():
    sys.argv[sys.argv.index("--data") + 1] = "/no/such/place"

def asked_to_stop():
    class Asked(TrainingProgress):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    run_module.TrainingProgress = Asked

def full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

def broken(*_, **__):
    raise ValueError("a broken file")

def disk_full():
    from mmpo.train.inference import ReferenceStore, reference
    plain = ReferenceStore.add
    def add(self, keys, values):
        if len(keys):
            raise UserError("disk full")
        plain(self, keys, values)
    ReferenceStore.add, reference.BATCHES_PER_CHUNK = add, 1

if sys.argv[2] or rank == world - 1:
    exec(sys.argv[1])
sys.exit(run(sys.argv[3:]))
"""


def spoiled(
    processes: Callable[..., list[CompletedProcess[str]]], spoil: str, *command: object, everywhere: bool = False, **options: Any
) -> list[CompletedProcess[str]]:
    """Run `mmpo COMMAND` in processes of the fixture `processes`, whose options these are; the last process, or everyone, first
    runs the code `spoil`, which knows the names above.
    """
    return processes(SCRIPT, spoil, "everywhere" if everywhere else "", *map(str, command), **options)


def errors(done: list[CompletedProcess[str]]) -> list[list[str]]:
    """Each process's lines that begin with "error: "."""
    assert not any("Traceback" in one.stderr for one in done), "".join(one.stderr for one in done)
    return [[line for line in one.stderr.splitlines() if line.startswith("error: ")] for one in done]


def said_once(done: list[CompletedProcess[str]], *parts: str) -> str:
    """All processes end with 2, and the first one alone says why, in one line that has these parts."""
    assert [one.returncode for one in done] == [2] * len(done), done[0].stderr[-2000:]
    first, *others = errors(done)
    assert len(first) == 1
    assert not any(others)
    for part in parts:
        assert part in first[0]
    return first[0]
