"""Several processes fail and stop together: one message, no hang, the same step; and a real launcher starts them."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from mmpo.train.model import load_pretrained

pytestmark = pytest.mark.slow

SCRIPT = """
import json, resource, signal
from mmpo.cli.main import run
import mmpo.train.training.trainer as guards
import mmpo.train.training.run as module
from mmpo.train.training import TrainingProgress

def missing_data():
    sys.argv[sys.argv.index("--data") + 1] = "/no/such/place"

def full_memory():
    plain = guards.memory_guard
    def guarded(*arguments):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**20, resource.RLIM_INFINITY))
        return plain(*arguments)
    guards.memory_guard = guarded

def asked_to_stop():
    class Asked(TrainingProgress):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    module.TrainingProgress = Asked

if rank == 1 and sys.argv[1]:
    globals()[sys.argv[1]]()
sys.exit(run(sys.argv[2:]))
"""
SIZES = ["--tiny-size", "16", "--tiny-layers", "1", "--tiny-vocab", "400", "--pairs-per-step", "10", "--save-steps", "50"]


def command(data, out, *more):
    return ["train", "reward", "--data", str(data), "--out", str(out), *SIZES, *more]


def errors(done):
    assert not any("Traceback" in one.stderr for one in done), done[0].stderr + done[1].stderr
    return [[line for line in one.stderr.splitlines() if line.startswith("error: ")] for one in done]


def said_once(done, part):
    """Both processes end with 2, and the first one alone says why, in one line that has this part."""
    assert [one.returncode for one in done] == [2, 2]
    first, second = errors(done)
    assert len(first) == 1
    assert part in first[0]
    assert second == []
    return first[0]


def test_what_is_wrong_for_all_is_said_once(processes, dataset, tmp_path):
    said_once(processes(SCRIPT, "", *command(dataset, tmp_path / "out", "--loss", "mmop")), "did you mean 'mmpo'")


def test_what_is_wrong_for_one_is_said_once_and_ends_all(processes, dataset, tmp_path):
    said = said_once(processes(SCRIPT, "missing_data", *command(dataset, tmp_path / "out")), "no dataset at /no/such/place: ")
    assert said.startswith("error: process 1 (of 2, counted from 0): no dataset at ")
    assert not (tmp_path / "out").exists()


def test_memory_that_runs_out_in_one_process_ends_all(processes, dataset, tmp_path):
    sizes = ["--tiny-size", "512", "--pairs-per-step", "200", "--max-steps", "4", "--epochs", "9"]
    done = processes(SCRIPT, "full_memory", *command(dataset, tmp_path / "out", *sizes))
    assert [one.returncode for one in done] == [2, 2]
    first, second = errors(done)
    assert second[0].startswith("error: process 1 (of 2, counted from 0): the memory ran out in step 1, in a pass of ")
    assert first == [
        "error: another process of this run has ended; if it could, it said why. The same command goes on from the last checkpoint"
    ]


def test_a_loss_that_is_not_finite_is_said_once(processes, dataset, tmp_path):
    wild = ["--learning-rate", "1e18", "--warmup-ratio", "0", "--schedule", "constant", "--max-grad-norm", "0", "--epochs", "9"]
    said_once(processes(SCRIPT, "", *command(dataset, tmp_path / "out", *wild)), "all prompts of the step: ")


def test_a_signal_to_one_process_stops_all_behind_the_same_step(processes, dataset, tmp_path):
    stopped = processes(SCRIPT, "asked_to_stop", *command(dataset, tmp_path / "out"))
    assert [one.returncode for one in stopped] == [130, 130]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert len(list((tmp_path / "out" / "checkpoint-3").glob("rng_state_*.pth"))) == 2
    for out in ("out", "whole"):
        done = processes(SCRIPT, "", *command(dataset, tmp_path / out, "--json"))
        assert [one.returncode for one in done] == [0, 0], done[0].stderr
        assert json.loads(done[0].stdout)["out"] == str(tmp_path / out)
        assert done[1].stdout == ""
    before, after = (load_pretrained("reward", str(tmp_path / out))[0].state_dict() for out in ("out", "whole"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def alone(arguments):
    """The command in a network of its own that has a loopback and nothing else, as the launcher listens everywhere."""
    quoted = " ".join(f"'{one}'" for one in arguments)
    return ["unshare", "-rn", "sh", "-c", f"ip link set lo up && exec {quoted}"]


def can_be_alone():
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run(alone(["true"]), capture_output=True).returncode == 0


@pytest.mark.skipif(not can_be_alone(), reason="this system does not let a test have a network of its own")
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun", "fsdp"])
def test_a_real_launcher_starts_it(launcher, dataset, tmp_path, pytestconfig):
    """The lines of docs/training.md."""
    recipe = pytestconfig.rootpath / "recipes" / "accelerate" / "fsdp.yaml"
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    start = {
        "accelerate": [
            *accelerate,
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "-m",
            "mmpo.cli",
        ],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mmpo.cli"],
        "fsdp": [*accelerate, "--config_file", str(recipe), "-m", "mmpo.cli"],
    }[launcher]
    done = subprocess.run(
        alone([*start, *command(dataset, tmp_path / "out", "--json")]), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["steps"] > 3
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert done.stderr.count("\ntrained ") + done.stderr.startswith("trained ") == 1
