"""What advice says of ten planted data sets of each kind, by the texts alone: benchmarks/advise.py prints the same counts."""

from pathlib import Path

import pytest
from folders import feedback_folder
from planted import planted_rows, with_raters

from mmpo.train.advise import advise

RIGHT = {"same": "none", "scales": "zscore", "shifted": "zscore"}


def normalisation(folder: Path, how: str, seed: int) -> str:
    rows = with_raters(planted_rows(0.7, seed=seed, prompts=120)[0], how, seed)
    return advise(feedback_folder(folder / f"{how}-{seed}", rows), seeds=5)["recommended"]["normalise"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["scales", *(pytest.param(how, marks=pytest.mark.whole) for how in ("same", "shifted"))])
def test_the_normalisation_that_is_planted_is_named(tmp_path: Path, how: str) -> None:
    assert normalisation(tmp_path, how, 0) == RIGHT[how]
