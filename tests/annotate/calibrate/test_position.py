"""The position bias of a grader that was asked about some pairs in both orders and about others in one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_cases import asked_once
from folders import feedback_folder

from mmpo.annotate import calibrate
from mmpo.annotate.calibrate import sentences
from mmpo.annotate.calibrate.position import Position
from mmpo.pipeline import BuildOptions, build

Rows = list[dict[str, Any]]


def calibrated(folder: Path, judge: Rows, people: Rows) -> dict[str, Any]:
    """The judge's figures."""
    parts = [feedback_folder(folder / kind, rows, scale=(-3, 3), kind=kind) for rows, kind in ((judge, "ai"), (people, "human"))]
    build(parts, folder / "all", options=BuildOptions(format="feedback", feedback_only=True))
    return calibrate(folder / "all", bootstrap=20, method="scale", length="off")["graders"]["judge"]


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.0, 0.8])
@pytest.mark.parametrize("twice", [0, 1, 3, 20, 200])
def test_the_bias_is_found_from_however_few_pairs_in_both_orders(tmp_path: Path, bias: float, twice: int) -> None:
    """200 pairs, four worlds: the root mean square error stays below .2, and the standard errors below .16. The mean of one pair in both
    orders is off by .8 in such worlds, of three by .4. (The scale's ends make .72 of .8.)
    """
    found = [calibrated(tmp_path / str(seed), *asked_once(seed, twice, bias)) for seed in range(4)]
    errors = np.array([one["bias_se"] for one in found])
    assert [one["bias_pairs"] for one in found] == [{"both_orders": twice, "one_order": 200 - twice}] * 4
    assert errors.min() > 0.03 and errors.max() < 0.16
    assert np.sqrt(np.mean([(one["bias"] - bias) ** 2 for one in found])) < 0.2
    said = [line for line in sentences("judge", found[0]) if line.startswith("The position bias of judge, ")]
    assert len(said) == 1 and f"(standard error {found[0]['bias_se']:.3f}), comes from {twice or 200}" in said[0]


def test_one_pair_asked_again_moves_nothing(tmp_path: Path) -> None:
    judge, people = asked_once(0, 0, 0.0)
    again = [{**judge[0], "gap": 3.0}, {**judge[0], "first": judge[0]["second"], "second": judge[0]["first"], "gap": 3.0}]
    before, after = calibrated(tmp_path / "0", judge, people), calibrated(tmp_path / "1", again + judge[1:], people)
    assert abs(after["bias"] - before["bias"]) < 0.05
    assert abs(after["cross_entropy"]["calibrated"] - before["cross_entropy"]["calibrated"]) < 0.005


def test_order_and_quality_are_not_told_apart_where_the_better_one_is_always_shown_first(tmp_path: Path) -> None:
    """A judge without bias. Pairs in both orders still tell the bias; without them there is none, and no weight of the order."""
    judge, people = asked_once(1, 0, 0.0, pairs=100)
    truth = {row["prompt"]: sum(one["gap"] for one in people if one["prompt"] == row["prompt"]) for row in judge}

    def turned(row: dict[str, Any]) -> dict[str, Any]:
        if truth[row["prompt"]] >= 0:
            return row
        return {**row, "first": row["second"], "second": row["first"], "gap": -row["gap"]}

    found = calibrated(tmp_path / "once", [turned(row) for row in judge], [turned(row) for row in people])
    assert found["bias"] is None and found["bias_se"] is None and found["bias_pairs"] is None and found["order_is_quality"]
    assert found["first_preferred"] > 0.75
    assert any(
        "these can't tell its position bias from quality, and none is taken off" in line for line in sentences("judge", found)
    )

    twice, _ = asked_once(1, 30, 0.8, pairs=100)
    other = [row for row in twice if row["first"].endswith("b")]
    biased = [{**one, "gap": max(-3.0, min(3.0, one["gap"] + 0.8))} for one in map(turned, judge)]
    shown = {row["prompt"]: row["first"] for row in biased}
    for row in other:
        if row["first"] == shown[row["prompt"]]:  # the world's second text stands first already: ask in the other order
            row["first"], row["second"], row["gap"] = row["second"], row["first"], 1.6 - row["gap"]
    both = calibrated(tmp_path / "both", biased + other, [turned(row) for row in people])
    assert both["order_is_quality"] and both["bias_pairs"] == {"both_orders": 30, "one_order": 0}
    assert both["bias"] == pytest.approx(0.8, abs=3 * both["bias_se"]) and both["bias_se"] < 0.2


def test_few_pairs_that_agree_by_chance_are_not_certain() -> None:
    """Three differences of 0 on a scale of whole steps: the standard error is 0, what holds for other pairs is not."""
    few = Position.of(np.zeros(3), np.array([1.0, -1.0, 1.0, -1.0]))
    assert few.error == 0 and few.rest > 1 / 3 and few.taken == 0
    assert few.pooled(0.5, 0.01)[0] == pytest.approx(0.5, abs=0.001)
    assert Position.of(np.full(400, 0.5), np.ones(400)).pooled(0.0, 0.1) == pytest.approx((0.0, 1 / 400), abs=1e-3)
