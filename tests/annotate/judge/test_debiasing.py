"""What asking in both orders buys: margins of a simulated judge with known liking for the first and known noise, against the truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from simulated_judge import Qualities

from mmpo.pipeline import BuildOptions, build, load_feedback, load_pairs

SCALE, NOISE = 0.5, 0.5


def truth_of(folder: Path) -> dict[tuple[str, str], float]:
    """The latent margin of every two completions: what a judge without noise and without liking would say."""
    qualities = Qualities(None)
    found = {}
    for row in load_feedback(folder).to_pylist():
        texts = {one["id"]: qualities.of(one["text"]) for one in row["completions"]}
        found |= {(a, b): SCALE * (texts[a] - texts[b]) for a in texts for b in texts if a != b}
    return found


def errors(pairs: pa.Table, truth: dict[tuple[str, str], float]) -> np.ndarray:
    """Margin less truth, in grades, shape (pairs,)."""
    rows = zip(pairs["chosen_id"].to_pylist(), pairs["rejected_id"].to_pylist(), pairs["quality_margin"].to_pylist())
    return np.array([margin - truth[a, b] for a, b, margin in rows])


@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0])
def test_margins_in_both_orders_are_free_of_the_judges_liking(bias: float, judging: Any, tmp_path: Path) -> None:
    job = judging({"defaults": {"bias": bias, "noise": NOISE, "scale": SCALE, "tau": 0.4}}, 150)
    truth = truth_of(job.feedback)
    rms: dict[str, float] = {}
    wrong: dict[str, float] = {}
    ses: dict[str, float] = {}
    for name in ("both", "one"):
        job.judge(name, orders=name, journal=str(tmp_path / "answers.sqlite"))
        build(tmp_path / name, tmp_path / f"{name}-pairs", options=BuildOptions(format="feedback"))
        pairs = load_pairs(tmp_path / f"{name}-pairs")
        error = errors(pairs, truth)
        assert len(error) == 450
        rms[name] = float(np.sqrt(np.mean(error**2)))
        right = [truth[a, b] for a, b in zip(pairs["chosen_id"].to_pylist(), pairs["rejected_id"].to_pylist())]
        wrong[name] = float(np.mean(np.array(right) < 0))
        ses[name] = float(np.sqrt(np.mean(np.array(pairs["margin_se"].to_pylist(), dtype=float) ** 2)))
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
