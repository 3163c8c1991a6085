"""Options refuse what cannot work, name what is allowed, need no torch, and agree with the tables they repeat."""

import subprocess
import sys

import pytest

from mmpo.pipeline.errors import UserError
from mmpo.train.losses import LOSSES
from mmpo.train.options import LOSS_NAMES, TARGET_NAMES, TrainOptions, option_help
from mmpo.train.targets import TARGETS


def test_names_repeat_the_tables():
    assert tuple(LOSSES) == LOSS_NAMES
    assert tuple(TARGETS) == TARGET_NAMES


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "mmop"}, "did you mean 'mmpo'"),
        ({"target": "noisy"}, "noise-aware"),
        ({"weight": "row"}, "pair, prompt"),
        ({"gamma": -1.0}, ">= 0"),
        ({"gamma": float("nan")}, ">= 0"),
        ({"gamma": "best"}, "'auto' or a number"),
        ({"beta": 0}, "beta must be a number above 0"),
        ({"epochs": "three"}, "epochs must be a number"),
        ({"warmup_ratio": 1.0}, "[0, 1)"),
        ({"tiny_size": 40}, "multiple of 16"),
        ({"max_prompt_length": 1024}, "below max_length"),
        ({"kind": "reward", "sft": 0.1}, "policies only"),
        ({"kind": "reward", "loss": "ipo"}, "policies only"),
        ({"kind": "reward", "reference": "x"}, "no reference"),
        ({"kind": "judge"}, "policy, reward"),
    ],
)
def test_refused(given, said):
    with pytest.raises(UserError) as refusal:
        TrainOptions(**{"kind": "policy", **given})
    assert said in str(refusal.value)


def test_gamma_may_be_zero_or_infinite():
    """Reference defect 3: γ = 0 behaved as γ = ∞."""
    assert TrainOptions("policy", gamma=0).gamma == 0
    assert TrainOptions("policy", gamma=float("inf")).as_dict()["gamma"] == "inf"


def test_every_option_has_help_and_no_torch_is_imported():
    assert set(option_help()) == set(TrainOptions("policy").as_dict()) - {"kind"}
    code = "import sys, mmpo.train.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
