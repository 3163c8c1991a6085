"""A run that is killed, at whatever moment, and started again by the same command ends with the very same bits."""

import json

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, signal
import mmpo.train.training.checkpoints as guards
import mmpo.train.training.run as module
import mmpo.train.training.trainer as trainer
from mmpo.train.options import TrainOptions
from mmpo.train.training import TrainingProgress

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def between_steps():
    class Mortal(TrainingProgress):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 6:
                die()
    module.TrainingProgress = Mortal

def within_a_step():
    plain = trainer.MarginTrainer.backward
    def backward(self, loss):
        plain(self, loss)
        if self.state.global_step == 6:  # the first of several passes
            die()
    trainer.MarginTrainer.backward = backward

def writing_a_checkpoint():
    plain = guards.GuardedTrainer._save_rng_state
    def save(self, folder):
        if self.state.global_step == 8:
            die()
        plain(self, folder)
    guards.GuardedTrainer._save_rng_state = save

def train(kind, options):
    (module.train_policy if kind == "policy" else module.train_reward)(TrainOptions(kind, **options))

def code_of(work):
    return os.waitstatus_to_exitcode(os.waitpid(child(work), 0)[1])
"""
ALONE = """
found = []
for kind, moment, options in json.loads(sys.argv[1]):
    def killed():
        globals()[moment]()
        train(kind, options)
    codes = [code_of(killed)]
    kept = sorted(name for name in os.listdir(options["out"]) if name.startswith("checkpoint-"))
    codes.append(code_of(lambda: train(kind, options)))
    found.append({"codes": codes, "kept": kept})
print(json.dumps(found))
"""
TOGETHER = """
if sys.argv[3]:
    globals()[sys.argv[3]]()
train(sys.argv[1], json.loads(sys.argv[2]))
"""
BASE = {"tiny_size": 16, "tiny_layers": 1, "tiny_vocab": 400, "epochs": 2, "save_steps": 4}
BASE |= {"pairs_per_step": 10, "tokens_per_batch": 40}
MOMENTS = ("between_steps", "within_a_step", "writing_a_checkpoint")
MORE = {
    "plain": {},
    "stopping": {"early_stopping": 3, "eval_steps": 2, "learning_rate": 0.02, "epochs": 20, "schedule": "constant"},
    "lora": {"lora": 2, "logging_steps": 3},
    "learned": {"loss": "ordinal=1,davidson=0.5,listwise=0.3", "loss_learning_rate": 0.05, "logging_steps": 1},
}
CASES = [(kind, moment, "plain") for kind in ("policy", "reward") for moment in MOMENTS]
CASES += [("reward", "between_steps", "stopping"), ("policy", "within_a_step", "lora")]
CASES += [("policy", "within_a_step", "learned"), ("reward", "between_steps", "learned")]


def options(name, data, out):
    return {**BASE, **MORE[name], "data": str(data), "out": str(out)}


@pytest.fixture(scope="session")
def same(record_of, same_weights):
    """Checks that two runs ended alike."""

    def check(kind, one, other):
        assert same_weights(kind, one, other)
        records = [record_of(folder) for folder in (one, other)]
        for part in ("history", "evaluations"):
            assert records[0][part] == records[1][part]
        assert records[0].get("learned") == records[1].get("learned")
        summaries = [{**record["summary"], "out": ""} for record in records]
        assert summaries[0] == summaries[1]

    return check


@pytest.fixture(scope="module")
def resumed(processes, dataset, tmp_path_factory):
    """Every case killed and started again, and for each kind of run one that was not; what the processes said."""
    out = tmp_path_factory.mktemp("resumed")
    jobs = [(kind, moment, options(name, dataset, out / f"{kind}-{moment}-{name}")) for kind, moment, name in CASES]
    whole = sorted({(kind, name) for kind, _, name in CASES})
    calm = "".join(f"train({kind!r}, {options(name, dataset, out / f'{kind}-{name}')})\n" for kind, name in whole)
    (done,) = processes(SCRIPT + ALONE + calm, json.dumps(jobs), world=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, json.loads(done.stdout.splitlines()[0])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_killed_and_started_again_it_ends_with_the_same_bits(case, resumed, same):
    kind, moment, name = case
    out, found = resumed
    said = found[CASES.index(case)]
    assert said["codes"] == [-9, 0]
    if name == "plain":  # what a kill leaves: whole checkpoints, and one that is not whole where it hit that
        assert said["kept"] == (["checkpoint-4", "checkpoint-8"] if moment == "writing_a_checkpoint" else ["checkpoint-4"])
    same(kind, out / f"{kind}-{name}", out / f"{kind}-{moment}-{name}")


def test_the_stopping_run_really_stopped_early(resumed, record_of):
    record = record_of(resumed[0] / "reward-between_steps-stopping")["summary"]
    assert 6 < record["best_step"] < record["steps"]  # the kill at step 6 lay before, so its counts were carried over


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_two_processes_killed_and_started_again(kind, processes, same, dataset, tmp_path):
    codes = {}
    for name, moment in (("whole", ""), ("killed", "between_steps"), ("killed", "")):
        done = processes(SCRIPT + TOGETHER, kind, json.dumps(options("plain", dataset, tmp_path / name)), moment)
        codes.setdefault(name, []).append([one.returncode for one in done])
    assert codes["whole"] == [[0, 0]]
    killed, again = codes["killed"]
    assert -9 in killed
    assert 0 not in killed  # who dies last may have lost the other before
    assert again == [0, 0]
    same(kind, tmp_path / "whole", tmp_path / "killed")
