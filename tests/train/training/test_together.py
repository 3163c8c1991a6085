"""Several processes fail and stop together: one message, no hang, the same step; and a real launcher starts them."""

import json
import shutil
import subprocess
import sys

import pytest
from process_cases import errors, said_once, spoiled
from training_cases import FEW_STEPS

pytestmark = pytest.mark.slow


def command(kind, data, out, *more):
    return ["train", kind, "--data", str(data), "--out", str(out), *FEW_STEPS, "--save-steps", "50", *more]


@pytest.fixture
def together(processes, dataset, tmp_path):
    """Runs the command in two processes, the second of which is spoiled; it trains into the folder "out"."""
    return lambda spoil, *more, out="out": spoiled(processes, spoil, *command("reward", dataset, tmp_path / out, *more))


WILD = ["--learning-rate", "1e18", "--warmup-ratio", "0", "--schedule", "constant", "--max-grad-norm", "0", "--epochs", "9"]


@pytest.mark.parametrize(("more", "said"), [(["--loss", "mmop"], "did you mean 'mmpo'"), (WILD, "all prompts of the step: ")])
def test_what_is_wrong_for_all_is_said_once(more, said, together):
    assert said in said_once(together("", *more), said)


def test_what_is_wrong_for_one_is_said_once_and_ends_all(together, tmp_path):
    said = said_once(together("missing_data()"), "no dataset at /no/such/place: ")
    assert said.startswith("error: process 1 (of 2, counted from 0): no dataset at ")
    assert not (tmp_path / "out").exists()


def test_memory_that_runs_out_in_one_process_ends_all(together, tmp_path):
    sizes = ["--tiny-size", "512", "--pairs-per-step", "200", "--max-steps", "4", "--epochs", "9"]
    done = together("limit_in_steps(4)", *sizes)
    assert [one.returncode for one in done] == [2, 2]
    first, second = errors(done)
    assert second[0].startswith("error: process 1 (of 2, counted from 0): the memory ran out in step 1, in a pass of ")
    ended = "error: another process of this run has ended; if it could, it gave the reason. "
    assert first == [ended + "The same command goes on from the last checkpoint"]


def test_a_signal_to_one_process_stops_all_behind_the_same_step(together, same_weights, tmp_path):
    stopped = together("asked_to_stop()")
    assert [one.returncode for one in stopped] == [130, 130]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert len(list((tmp_path / "out" / "checkpoint-3").glob("rng_state_*.pth"))) == 2
    for out in ("out", "whole"):
        done = together("", "--json", out=out)
        assert [one.returncode for one in done] == [0, 0], done[0].stderr
        assert json.loads(done[0].stdout)["out"] == str(tmp_path / out)
        assert done[1].stdout == ""
    assert same_weights("reward", tmp_path / "out", tmp_path / "whole")


NESTED = """
from mmpo.train.distributed import agreed, from_all, from_first

def nested(inner):
    if rank == 1:
        raise ValueError("before the inner one")
    inner()
for inner in (lambda: from_first(lambda: 1), lambda: from_all(lambda: 2), lambda: agreed(lambda: from_all(lambda: 3))):
    try:
        agreed(lambda: nested(inner))
    except Exception as error:
        print(type(error).__name__, error)
    print(from_all(lambda: rank), from_first(lambda: rank))  # all still meet at the same place
"""


def test_one_process_that_fails_on_the_way_to_an_inner_exchange(processes):
    first, second = processes(NESTED, seconds=60)
    met = "[0, 1] 0\n"
    said = f"UserError process 1 (of 2, counted from 0): ValueError: before the inner one\n{met}"
    assert first.stdout == 3 * said, first.stderr
    assert second.stdout == 3 * f"ValueError before the inner one\n{met}", second.stderr


@pytest.mark.parametrize("where", ["load_reference", "PolicyTrainer", "_reference"])
@pytest.mark.parametrize("what", ["full", "broken"])
def test_what_fails_in_one_process_before_training_is_said_once_with_advice(where, what, processes, trained, dataset, tmp_path):
    """Loading the reference, moving it and making the trainer, while the other process waits for reference values."""
    more = ["--reference", str(trained["policy"])] if where == "load_reference" else []
    words = command("policy", dataset, tmp_path / "out", "--max-steps", "2", *more)
    done = spoiled(processes, f"run_module.{where} = {what}", *words, seconds=90, MMPO_CACHE=str(tmp_path / "cache"))
    if what == "full":
        outside = "ran out outside of the steps (weights, optimizer, measuring), in process 1 (of 2, counted from 0): set "
        said_once(done, outside, "--gradient-checkpointing")
    else:
        said = [line for line in done[0].stderr.splitlines() if line.startswith("error: ")]  # with the place of the mistake below
        assert said == ["error: process 1 (of 2, counted from 0): ValueError: a broken file"]
        assert done[0].returncode == 2
    assert not (tmp_path / "out").exists()


def test_a_cache_that_cannot_be_written_midway_stops_all_processes(processes, dataset, tmp_path):
    words = command("policy", dataset, tmp_path / "out", "--tokens-per-batch", "60", "--reference-cache", str(tmp_path / "cache"))
    assert "disk full" in said_once(spoiled(processes, "disk_full()", *words, everywhere=True, seconds=120))


def alone(arguments):
    """The command in a network of its own that has a loopback and nothing else, as the launcher listens everywhere."""
    quoted = " ".join(f"'{one}'" for one in arguments)
    return ["unshare", "-rn", "sh", "-c", f"ip link set lo up && exec {quoted}"]


def can_be_alone():
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run(alone(["true"]), capture_output=True).returncode == 0


@pytest.mark.skipif(not can_be_alone(), reason="this system does not let a test have a network of its own")
@pytest.mark.parametrize("launcher", [pytest.param("accelerate", marks=pytest.mark.whole), "torchrun", "fsdp"])
def test_a_real_launcher_starts_it(launcher, dataset, tmp_path, pytestconfig):
    """The lines of docs/training.md."""
    recipe = pytestconfig.rootpath / "recipes" / "accelerate" / "fsdp.yaml"
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    start = {
        "accelerate": [*accelerate, *["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
        "fsdp": [*accelerate, "--config_file", str(recipe)],
    }[launcher]
    done = subprocess.run(
        alone([*start, "-m", "mmpo.cli", *command("reward", dataset, tmp_path / "out", "--json")]),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["steps"] > 3
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert done.stderr.count("\ntrained ") + done.stderr.startswith("trained ") == 1
