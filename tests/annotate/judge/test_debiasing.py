"""What asking in both orders buys: margins of a simulated judge with known liking for the first and known noise, against the truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_judge import Qualities

from mmpo.pipeline import BuildOptions, build, load_pairs

SCALE, NOISE = 0.5, 0.5


@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0])
def test_margins_in_both_orders_are_free_of_the_judges_liking(bias: float, judging: Any, tmp_path: Path) -> None:
    job, quality = judging({"defaults": {"bias": bias, "noise": NOISE, "scale": SCALE, "tau": 0.4}}, 150), Qualities().of
    rms, wrong, ses = {}, {}, {}
    for name in ("both", "one"):
        [told] = job.judge(name, orders=name, journal=str(tmp_path / "answers.sqlite"))["judges"]
        build(tmp_path / name, tmp_path / f"{name}-pairs", options=BuildOptions(format="feedback"))
        pairs, gaps = load_pairs(tmp_path / f"{name}-pairs").to_pylist(), job.comparisons(name)
        # In grades: what a judge without noise and without liking would say.
        truth = np.array(
            [SCALE * (quality(pair["chosen"][0]["content"]) - quality(pair["rejected"][0]["content"])) for pair in pairs]
        )
        margin, se = (np.array([pair[column] for pair in pairs], float) for column in ("quality_margin", "margin_se"))
        assert len(pairs) == 450 and {(pair["raters"], pair["kind"]) for pair in pairs} == {(1, "ai")}
        rms[name], ses[name] = np.sqrt(np.mean((margin - truth) ** 2)), np.sqrt(np.mean(se**2))
        wrong[name] = np.mean(truth < 0)
        if name == "both":
            assert told["position_bias"] == pytest.approx(bias, abs=0.1) and told["pairs_both_orders"] == 450
            gap = {(one["first_id"], one["second_id"]): one["gap"] for one in gaps}
            halves = [(gap[ids] - gap[ids[::-1]]) / 2 for pair in pairs if (ids := (pair["chosen_id"], pair["rejected_id"]))]
            assert margin == pytest.approx(halves, abs=1e-9) and (se > 0).all()
        else:
            assert len(gaps) == 450 and np.mean([one["gap"] for one in gaps]) == pytest.approx(bias, abs=0.25)
    print(
        f"\nbias {bias:.1f}, noise {NOISE}: RMS error of the margin {rms['both']:.3f} in both orders, {rms['one']:.3f} in one; "
        f"wrong sign {wrong['both']:.3f}, {wrong['one']:.3f}; RMS margin_se {ses['both']:.3f}, {ses['one']:.3f}"
    )
    # Two independent answers halve the variance; the liking is gone whatever it was, and stays whole in one order.
    assert rms["both"] == pytest.approx(NOISE / np.sqrt(2), rel=0.15)
    assert rms["one"] == pytest.approx(np.hypot(NOISE, bias), rel=0.15)
    assert wrong["both"] < wrong["one"] - 0.02
    # What the pair says of its own uncertainty covers the error that it has.
    assert 0.9 <= ses["both"] / rms["both"] <= 1.6
