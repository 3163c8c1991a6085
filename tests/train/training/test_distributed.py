"""Two processes, plain and split by FSDP, against one: the same losses, measures and weights, in every kind of step."""

import json

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from folders import split_folder
from safetensors.torch import load_file
from training_cases import make_pairs
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from mmpo.train.evaluation import evaluate

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import mmpo.train.training.trainer as module
from mmpo.train.options import TrainOptions
from mmpo.train.distributed import from_all
from mmpo.train.training import train_policy, train_reward
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

seen, reduced, passes = {}, [], []
plain = module.make_step
def make_step(prompts, *arguments, **named):
    step = plain(prompts, *arguments, **named)
    seen["fewest_prompts"] = min(seen.get("fewest_prompts", 99), len(prompts))
    seen["most_pairs"] = max(seen.get("most_pairs", 0), *(len(prompt.rows) for prompt in prompts))
    seen["most_parts"] = max([seen.get("most_parts", 0), *(len(batch.parts) for batch in step.batches)])
    seen["most_looks"] = max(seen.get("most_looks", 0), step.idle_forwards)
    return step
module.make_step = make_step
stepped, backward = module.MarginTrainer.training_step, module.MarginTrainer.backward
def training_step(self, model, inputs, *rest):
    if not self.state.global_step and hasattr(model, "register_comm_hook"):
        model.register_comm_hook(None, lambda state, bucket: reduced.append(1) or allreduce_hook(state, bucket))
    return stepped(self, model, inputs, *rest)
def counted(self, *arguments):
    passes.append(1)
    return backward(self, *arguments)
module.MarginTrainer.training_step, module.MarginTrainer.backward = training_step, counted
trained = module.MarginTrainer.train
def train(self, **named):
    result = trained(self, **named)
    seen["split"] = any(hasattr(value, "full_tensor") for value in self.model.parameters())
    seen["wrapped"], seen["steps"] = type(self.model_wrapped).__name__, result.global_step
    learned = from_all(lambda: {name: value.tolist() for name, value in self.objective.parameters.items()})
    assert all(found == learned[0] for found in learned), learned
    return result
module.MarginTrainer.train = train

for kind, name, options in json.loads(sys.argv[1]):
    out = f"{sys.argv[2]}/{kind}-{name}"
    for counts in (seen, reduced, passes):
        counts.clear()
    (train_policy if kind == "policy" else train_reward)(TrainOptions(kind, data=sys.argv[3], out=out, **options))
    seen["reduced"], seen["passes"] = len(reduced), len(passes)
    seen["most_looks"] = max(from_all(lambda: seen["most_looks"]))  # the first process has the largest prompt and is never idle
    if rank == 0:
        open(out + ".json", "w").write(json.dumps(seen))
"""
BASE = {"tiny_size": 32, "tiny_vocab": 400, "pairs_per_step": 10, "learning_rate": 1e-3, "logging_steps": 1, "max_grad_norm": 0.5}
STEPS = {
    "plain": {},
    "parts": {"tokens_per_batch": 60},  # large prompts fall into parts
    "few": {"pairs_per_step": 1, "max_steps": 3},  # fewer prompts in a step than processes
    "learned": {"loss": "ordinal=1,davidson=0.5,listwise=0.3", "loss_learning_rate": 0.05, "tokens_per_batch": 60},
}
WAYS = {
    "checkpointing": {"gradient_checkpointing": True, "max_steps": 3},
    "lora": {"lora": 4, "gradient_checkpointing": True, "tokens_per_batch": 100, "max_steps": 3},
    "bf16": {"bf16": True, "max_steps": 3},
}
RUNS = [(kind, name, {**BASE, **more}) for kind in ("policy", "reward") for name, more in {**STEPS, **WAYS}.items()]
REFUSED = ("fsdp", "reward-lora")
"""See test_options.py."""
NAMES = [f"{kind}-{name}" for kind, name, _ in RUNS]


def fsdp_environment(root):
    """What `accelerate launch` makes of the recipe's file."""
    place = root / "recipes" / "accelerate" / "fsdp.yaml"
    args = launch_command_parser().parse_args(["--config_file", str(place), "train.py"])
    args, _, _ = _validate_launch_command(args)
    wanted = prepare_multi_gpu_env(args)
    return {name: value for name, value in wanted.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    splits = {"train": make_pairs(10, [2, 8, 3, 5], seed=1), "validation": make_pairs(5, [3], seed=2)}
    return split_folder(tmp_path_factory.mktemp("distributed") / "pairs", **splits)


@pytest.fixture(scope="module")
def runs(processes, data, pytestconfig):
    """The folder of the outputs of one process, of two, and of two with FSDP."""
    out = data.parent
    for name, world, environment in (("one", 1, {}), ("ddp", 2, {}), ("fsdp", 2, fsdp_environment(pytestconfig.rootpath))):
        chosen = [run for run in RUNS if (name, f"{run[0]}-{run[1]}") != REFUSED]
        arguments = (json.dumps(chosen), str(out / name), str(data))
        done = processes(SCRIPT, *arguments, world=world, **environment)
        assert [one.returncode for one in done] == [0] * world, done[0].stderr[-3000:] + done[-1].stderr[-3000:]
        assert all(one.stderr == "" or rank == 0 for rank, one in enumerate(done)), done[-1].stderr  # one voice
    return out


def weights(runs, mode, name):
    files = [runs / mode / name / file for file in ("adapter_model.safetensors", "model.safetensors")]
    return load_file(next(file for file in files if file.exists()))


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in NAMES for mode in ("ddp", "fsdp") if (mode, name) != REFUSED],
)
def test_two_processes_train_as_one(name, mode, runs, record_of):
    exact = "bf16" not in name
    one, two = (record_of(runs / m / name) for m in ("one", mode))
    assert two["history"]["steps"] == one["history"]["steps"]
    assert two["history"]["loss"] == pytest.approx(one["history"]["loss"], abs=1e-6 if exact else 1e-3)
    if exact:  # in bfloat16 a pair near z = 0 may change sides
        for figure in set(one["history"]) - {"steps"}:  # there is no accuracy of the first step, in which every z is 0
            mine, theirs = ([-1.0 if value is None else value for value in run["history"][figure]] for run in (one, two))
            assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-5)
        assert two["evaluations"][-1] == pytest.approx(one["evaluations"][-1], rel=1e-5, abs=1e-5)
    if "learned" in name:
        mine, theirs = (run["learned"]["ordinal"]["thresholds"] for run in (one, two))
        assert theirs == pytest.approx(mine, rel=1e-5) and len(set(one["history"]["ordinal/gamma"])) > 3
    mine, theirs = weights(runs, "one", name), weights(runs, mode, name)
    assert mine.keys() == theirs.keys()
    difference = sum(float(((mine[key] - theirs[key]) ** 2).sum()) for key in mine) ** 0.5
    assert difference <= (1e-5 if exact else 1e-3) * sum(float((value**2).sum()) for value in mine.values()) ** 0.5


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_the_steps_were_of_every_kind(mode, runs):
    """Else the equalities above would say less than they seem to."""
    seen = {name: json.loads((runs / mode / f"{name}.json").read_text()) for name in ("policy-plain", "policy-parts", "policy-few")}
    assert seen["policy-plain"]["most_pairs"] == 28
    assert seen["policy-parts"]["most_parts"] > 1
    assert seen["policy-parts"]["most_looks"] > 0
    assert seen["policy-parts"]["passes"] > 2 * seen["policy-parts"]["steps"]
    if mode == "ddp":  # gradients are added up once a step, whatever the number of passes
        assert seen["policy-parts"]["reduced"] == seen["policy-parts"]["steps"]
    assert seen["policy-few"]["fewest_prompts"] == 1
    assert [one["split"] for one in seen.values()] == [mode == "fsdp"] * 3
    assert seen["policy-plain"]["wrapped"] == ("FSDPLlamaForCausalLM" if mode == "fsdp" else "DistributedDataParallel")


def test_what_fsdp_saves_is_a_plain_model(runs, data, record_of):
    for kind, load in (("policy", AutoModelForCausalLM), ("reward", AutoModelForSequenceClassification)):
        folder = runs / "fsdp" / f"{kind}-plain"
        model, report = load.from_pretrained(folder, output_loading_info=True)
        assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(model).__name__.startswith("LlamaFor")
        assert model.dtype == torch.float32
        measured = evaluate(kind, folder, data, split="validation")
        assert measured["cross_entropy"] == pytest.approx(record_of(folder)["summary"]["metrics"]["loss"], abs=1e-5)


def test_the_recipe_is_what_was_run(pytestconfig):
    path = pytestconfig.rootpath / "recipes" / "accelerate" / "fsdp.yaml"
    config = yaml.safe_load(path.read_text())
    environment = fsdp_environment(pytestconfig.rootpath)
    assert environment["FSDP_VERSION"] == "2" == str(config["fsdp_config"]["fsdp_version"])
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
