"""The internals of transformers that the trainer overrides: which they are, how they look, and which releases are known."""

import inspect
import tomllib

import pytest
from transformers import Trainer

from mmpo.pipeline.errors import UserError
from mmpo.train.training import KNOWN_TRANSFORMERS, PolicyTrainer, RewardTrainer, check_transformers
from mmpo.train.training.checkpoints import OVERRIDDEN, GuardedTrainer


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


@pytest.mark.parametrize("version", ["4.57.6", "5.22.9", "6.0.0", "6.0.0rc1", "7.1"])
def test_other_releases_are_refused_with_what_to_install(version):
    with pytest.raises(UserError) as refusal:
        check_transformers(version)
    for part in (f"transformers {version} is installed", KNOWN_TRANSFORMERS, f"pip install 'transformers{KNOWN_TRANSFORMERS}'"):
        assert part in str(refusal.value)
    for known in (None, "5.23.0", "5.99.1"):
        check_transformers(known)


def test_the_package_asks_for_the_same_range(pytestconfig):
    project = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["project"]
    asked = [line for extra in project["optional-dependencies"].values() for line in extra if line.startswith("transformers")]
    assert len(asked) == 2
    assert all(set(line.partition(">=")[2].split(",")) == {"5.23", "<6"} for line in asked)
