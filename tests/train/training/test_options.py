"""What a run refuses before it begins: options that cannot work, launchers that are not exact, other releases of transformers."""

import inspect
import subprocess
import sys
import tomllib

import pytest
from training_cases import small_model, user_error
from transformers import Trainer

from mmpo.pipeline.options import fields_of, options_from
from mmpo.train.distributed import check_launch, check_splittable
from mmpo.train.model import tiny_model
from mmpo.train.objective import Objective
from mmpo.train.options import TrainOptions
from mmpo.train.training import KNOWN_TRANSFORMERS, PolicyTrainer, RewardTrainer, check_transformers
from mmpo.train.training.checkpoints import OVERRIDDEN, GuardedTrainer


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "mmop"}, "did you mean 'mmpo'"),
        ({"target": "noisy"}, "noise-aware"),
        ({"weight": "row"}, "weight: 'row' is not 'pair' or 'prompt'"),
        ({"gamma": True}, "gamma: "),
        ({"gamma": -1.0}, "gamma: -1.0 is not 0 or more or 'auto'"),
        ({"gamma": float("nan")}, "gamma: nan is not 0 or more"),
        ({"gamma": "best"}, "'best' is not a number or 'auto'"),
        *(
            ({"gamma": f"auto:{mean}"}, f"'auto:{mean}' is not a number or 'auto' (or auto:MEAN")
            for mean in ("", "1", ".5", "x", "nan")
        ),
        ({"beta": 0}, "beta: 0 is not above 0"),
        ({"epochs": "three"}, "epochs: 'three' is not a number"),
        ({"warmup_ratio": 1.0}, "1.0 is not below 1"),
        *(({"seed": seed}, f"seed: {seed} is not") for seed in (-1, 2**32, 1.5, True, None)),
        ({"tiny_size": 40}, "multiple of 16"),
        ({"max_prompt_length": 1024}, "below max_length"),
        ({"kind": "reward", "loss": "mmpo=1,sft=0.1"}, "sft is a term on log-probabilities per token: it works for policies only"),
        ({"loss": "mmpo=1,sfd=0.1"}, "did you mean 'sft'"),
        ({"loss": "mmpo=1,mmpo=2"}, "mmpo twice"),
        ({"loss": "mmpo=0"}, "the weight of mmpo must be a finite number above 0, not '0'"),
        ({"loss": {"mmpo": float("inf")}}, "finite number above 0"),
        ({"loss": "mmpo=lots"}, "not 'lots'"),
        ({"loss": " "}, "names no objective"),
        ({"loss": 3}, "3 is not text or a mapping"),
        ({"source_weights": {"arena": -1}}, "source_weights.arena: -1 is not 0 or more"),
        ({"source_weights": {"arena": float("nan")}}, "arena"),
        ({"layout": "trie"}, "'trie' is not 'auto', 'tree' or 'rows'; did you mean 'tree'?"),
        ({"early_stopping": 0}, "early_stopping: 0 is not 1 or more"),
        ({"kind": "reward", "loss": "ipo"}, "policies only"),
        ({"kind": "reward", "reference": "x"}, "no reference"),
        ({"kind": "judge"}, "'judge' is not 'policy' or 'reward'"),
    ],
)
def test_refused(given, said):
    assert said in user_error("", TrainOptions, **{"kind": "policy", **given})


def test_an_objective_is_kept_in_one_way_however_it_was_written():
    written = [TrainOptions("policy", loss=loss).loss for loss in ("sft=.1, mmpo", "mmpo=1.0,sft=1e-1", {"sft": "0.1", "mmpo": 1})]
    assert set(written) == {"mmpo=1,sft=0.1"}
    assert TrainOptions("policy", loss=written[0]).loss == written[0]
    assert TrainOptions("policy", loss={"dpo": 1}).loss == "dpo"
    assert TrainOptions("policy", loss="dpo=2").loss == "dpo=2"


def test_options_of_a_loss_are_kept_in_one_way_however_they_were_written():
    several = [{"epsilon": ".2"}, {"cdpo.epsilon": 0.2}, {"cdpo": {"epsilon": "0.20"}}]
    found = [TrainOptions("policy", loss="mmpo=1,cdpo=.5", loss_options=given).loss_options for given in several]
    assert found == [{"cdpo.epsilon": 0.2}] * 3
    alone = [TrainOptions("policy", loss="cdpo", loss_options=given).loss_options for given in several]
    assert alone == [{"epsilon": 0.2}] * 3


def test_the_command_line_and_recipes_say_the_same():
    """Text from flags, mappings from YAML."""
    flags = {"loss": "mmpo=1,cdpo=0.5", "source_weights": "a=2,a + b=0.5", "loss_options": "cdpo.epsilon=0.2"}
    yaml = {"loss": {"mmpo": 1, "cdpo": 0.5}, "source_weights": {"a": 2, "a + b": 0.5}, "loss_options": {"cdpo": {"epsilon": 0.2}}}
    found = [options_from(TrainOptions, {"kind": "reward", **given}) for given in (flags, yaml)]
    assert found[0].loss == found[1].loss == "mmpo=1,cdpo=0.5"
    assert found[0].source_weights == found[1].source_weights == {"a": 2.0, "a + b": 0.5}
    assert found[0].loss_options == found[1].loss_options == {"cdpo.epsilon": 0.2}
    assert Objective.parse(found[0].loss, found[0].loss_options) == Objective.parse(found[1].loss, found[1].loss_options)


def test_gamma_may_be_zero_or_infinite():
    """Reference defect 3: γ = 0 behaved as γ = ∞."""
    assert TrainOptions("policy", gamma=0).gamma == 0
    assert TrainOptions("policy", gamma=float("inf")).as_dict()["gamma"] == "inf"


def test_every_option_has_help_and_no_torch_is_imported():
    assert all(field.description for field in fields_of(TrainOptions).values())
    code = "import sys, mmpo.train.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "data parallelism or FSDP"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision fp16"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "give --bf16 too"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version is 1; training needs 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "needs full_state_dict"),
        ({**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading is true; training needs false"),
    ],
)
def test_launchers_that_ask_for_what_is_not_exact_are_refused(environment, said, monkeypatch, train_tiny, dataset, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said in user_error("", train_tiny, "reward", dataset, tmp_path / "out")
    if "bf16" in said:
        check_launch(bf16=True)


def test_what_fsdp_can_not_split_is_refused(tokenizer, monkeypatch, train_tiny, dataset, tmp_path):
    check_splittable(tiny_model("reward", tokenizer, size=16, layers=1))
    user_error(r"embeddings lie in the block bert\.embeddings", check_splittable, small_model("Bert", "reward"))
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    user_error("LoRA adapter is merged", train_tiny, "reward", dataset, tmp_path / "out", lora=2)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_is_there_and_looks_as_it_is_known(name):
    assert tuple(inspect.signature(getattr(Trainer, name)).parameters) == ("self", *OVERRIDDEN[name])
    assert tuple(inspect.signature(getattr(GuardedTrainer, name)).parameters) == ("self", *OVERRIDDEN[name])


@pytest.mark.parametrize("trainer", [PolicyTrainer, RewardTrainer])
def test_nothing_else_that_is_private_is_overridden(trainer):
    ours = {name for part in trainer.__mro__ if issubclass(part, Trainer) and part is not Trainer for name in vars(part)}
    private = {name for name in ours & set(dir(Trainer)) if name.startswith("_") and not name.startswith("__")}
    assert private == {name for name in OVERRIDDEN if name.startswith("_")}
    assert set(OVERRIDDEN) <= set(vars(GuardedTrainer))


@pytest.mark.parametrize("version", ["4.57.6", "5.17.9", "6.0.0", "6.0.0rc1", "7.1"])
def test_other_releases_are_refused_with_what_to_install(version):
    message = user_error(f"transformers {version} is installed", check_transformers, version)
    assert KNOWN_TRANSFORMERS in message and f"pip install 'transformers{KNOWN_TRANSFORMERS}'" in message
    for known in (None, "5.18.0", "5.99.1"):
        check_transformers(known)


def test_the_package_asks_for_the_same_range(pytestconfig):
    project = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["project"]
    asked = [line for extra in project["optional-dependencies"].values() for line in extra if line.startswith("transformers")]
    assert len(asked) == 2
    assert all(set(line.partition(">=")[2].split(",")) == {"5.18", "<6"} for line in asked)
