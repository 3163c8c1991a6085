"""γ auto and auto:MEAN: one meaning wherever a γ is taken, and one number behind it."""

from pathlib import Path

import numpy as np
import pytest
from command import graded
from folders import write_rows

from mmpo.cli.recipe.model import load_recipe, schema
from mmpo.pipeline import build_pairs, read_feedback, write_dataset
from mmpo.pipeline import margins as mm
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.validate import validate

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
MARGINS = np.array([0.0, 1.0, 2.0, 5.0])


@pytest.mark.parametrize(("gamma", "mean"), [("auto", mm.MEAN_TARGET), ("auto:.9", 0.9), ("auto:0.61", 0.61)])
def test_auto_is_the_gamma_of_a_mean_target(gamma: str, mean: float) -> None:
    assert mm.target_probability(MARGINS[1:], mm.resolve_gamma(gamma, MARGINS)).mean() == pytest.approx(mean, abs=1e-12)


def test_a_number_stays_and_ties_alone_give_none() -> None:
    assert mm.resolve_gamma(1.1, MARGINS) == 1.1
    assert mm.resolve_gamma("auto", MARGINS) == mm.gamma_for_mean_target(MARGINS)
    with pytest.raises(UserError, match=r"gamma auto:\.9 needs pairs with a positive margin"):
        mm.resolve_gamma("auto:.9", np.zeros(3))


def test_recipes_take_it_in_every_section() -> None:
    recipe = load_recipe(
        QUICKSTART, ["training.gamma=auto:.9", "evaluate.gamma=auto:.8", "validate.gamma=auto", "runs.mmpo.gamma=2"]
    )
    assert (recipe.measures.gamma, recipe.checks.gamma, recipe.runs["mmpo"].gamma) == ("auto:.8", "auto", 2.0)
    assert {run.gamma for run in recipe.runs.values()} >= {"auto:.9", 2.0}
    for key in ("training.gamma=auto:2", "evaluate.gamma=best", "validate.gamma=-1"):
        with pytest.raises(UserError, match=r"gamma: .* is not (a number|0 or more) or 'auto'"):
            load_recipe(QUICKSTART, [key])
    [number, text] = schema()["$defs"]["TrainOptions"]["properties"]["gamma"]["anyOf"][:2]
    assert (number["minimum"], text["type"]) == (0, "string")


def test_validate_takes_it_from_the_training_pairs(tmp_path: Path) -> None:
    pairs = build_pairs(read_feedback(write_rows(tmp_path / "grades.jsonl", graded()), "jsonl"))
    write_dataset(pairs, tmp_path / "pairs", split=(1, 0, 0))
    gamma = mm.resolve_gamma("auto:.9", pairs["quality_margin"])
    checks = [validate(tmp_path / "pairs", gamma=given)["checks"] for given in ("auto:.9", gamma)]
    found = [next(check for check in given if check["name"] == "saturation") for given in checks]
    assert found[0] == found[1] and found[0]["status"] != "unknown"


def test_the_documents_say_the_number_that_holds() -> None:
    """Where the default changes, docs/training.md has its grounds to tell anew."""
    assert f"The default is {mm.MEAN_TARGET:g}:" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
