"""Options refuse what cannot work, name what is allowed, and need no torch."""

import subprocess
import sys

import pytest

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import fields_of, options_from
from mmpo.train.objective import Objective
from mmpo.train.options import TrainOptions


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
    with pytest.raises(UserError) as refusal:
        TrainOptions(**{"kind": "policy", **given})
    assert said in str(refusal.value)


def test_an_objective_is_kept_in_one_way_however_it_was_written():
    written = [TrainOptions("policy", loss=loss).loss for loss in ("sft=.1, mmpo", "mmpo=1.0,sft=1e-1", {"sft": "0.1", "mmpo": 1})]
    assert set(written) == {"mmpo=1,sft=0.1"}
    assert TrainOptions("policy", loss=written[0]).loss == written[0]
    assert TrainOptions("policy", loss={"dpo": 1}).loss == "dpo"
    assert TrainOptions("policy", loss="dpo=2").loss == "dpo=2"


def test_the_command_line_and_recipes_say_the_same():
    """Text from flags, mappings from YAML."""
    flags = {"loss": "mmpo=1,cdpo=0.5", "source_weights": "a=2,a + b=0.5", "loss_options": "cdpo.epsilon=0.2"}
    yaml = {"loss": {"mmpo": 1, "cdpo": 0.5}, "source_weights": {"a": 2, "a + b": 0.5}, "loss_options": {"cdpo": {"epsilon": 0.2}}}
    found = [options_from(TrainOptions, {"kind": "reward", **given}) for given in (flags, yaml)]
    assert found[0].loss == found[1].loss == "mmpo=1,cdpo=0.5"
    assert found[0].source_weights == found[1].source_weights == {"a": 2.0, "a + b": 0.5}
    assert Objective.parse(found[0].loss, found[0].loss_options) == Objective.parse(found[1].loss, found[1].loss_options)


def test_gamma_may_be_zero_or_infinite():
    """Reference defect 3: γ = 0 behaved as γ = ∞."""
    assert TrainOptions("policy", gamma=0).gamma == 0
    assert TrainOptions("policy", gamma=float("inf")).as_dict()["gamma"] == "inf"


def test_every_option_has_help_and_no_torch_is_imported():
    assert all(field.description for field in fields_of(TrainOptions).values())
    code = "import sys, mmpo.train.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
