"""Agreement on real grades of people, written as JSON lines and read as users' files are."""

from pathlib import Path

import krippendorff
import numpy as np
import pandas as pd
import pytest
from human_sets import HUMAN_SETS, agreed, compared, flipped, mqm, pandalm, table, tulu

from mmpo.annotate.agreement import agree
from mmpo.pipeline import read_feedback

MEASURES = ("accuracy", "spearman", "alpha_nominal", "alpha_ordinal", "alpha_interval")


def by_the_package(frame: pd.DataFrame, first: str, second: str, gap: str, rater: str) -> tuple[int, float]:
    """Pairs that two raters or more graded, named in the order of their texts, and the package's α on both orientations."""
    told = (frame[first].str.strip() != "") & (frame[second].str.strip() != "") & (frame[first] != frame[second])
    frame = frame[told]
    swapped = frame[first] > frame[second]
    texts = {"a": frame[first].where(~swapped, frame[second]), "b": frame[second].where(~swapped, frame[first])}
    frame = frame.assign(**texts, signed=frame[gap].astype(float).where(~swapped, -frame[gap].astype(float)))
    values = frame.pivot_table(index=["prompt", "a", "b"], columns=rater, values="signed").to_numpy().T
    values = values[:, (~np.isnan(values)).sum(axis=0) > 1]
    return values.shape[1], float(krippendorff.alpha(reliability_data=np.concatenate([values, -values], axis=1)))


def test_the_shipped_sample(root: Path) -> None:
    """Two people on 183 pairs: they agree on 89% of those that neither calls a tie; the longer answer wins 65% to 68% of them."""
    summary = agree(read_feedback(root / "data" / "human_graded_pairs.jsonl", "jsonl", scale=(-2, 2), kind="human"))
    [pair] = summary["pairs"]
    assert pair["units"] == pair["prompts"] == 183 and pair["decided"] == 103
    assert [pair[name] for name in MEASURES] == pytest.approx([0.8932, 0.6692, 0.4656, 0.6650, 0.6687], abs=5e-5)
    assert all(pair[f"{name}_95"][0] < pair[name] < pair[f"{name}_95"][1] for name in MEASURES)
    assert [row["longest"] for row in summary["length"]] == pytest.approx([0.6505, 0.6796], abs=5e-5)


def test_ragchecker(real_data: Path, tmp_path: Path) -> None:
    """Its grades are positive where the second answer is better. Turning them, or naming the answers the other way round, is the same."""
    frame = table(real_data, "ragchecker_human_pairs")
    frame["turned"] = -frame["overall"]
    one = agreed(tmp_path / "one.jsonl", compared(frame, "response_1", "response_2", "turned", "annotation"), (-2, 2))
    other = agreed(tmp_path / "two.jsonl", compared(frame, "response_2", "response_1", "overall", "annotation"), (-2, 2))
    assert one["pairs"] == other["pairs"] and one["length"] == other["length"]
    assert one["position"][0]["toward_first"] == -other["position"][0]["toward_first"] != 0
    [pair] = one["pairs"]
    units, alpha = by_the_package(frame, "response_1", "response_2", "overall", "annotation")
    assert pair["units"] == units == 210 and pair["alpha_interval"] == pytest.approx(alpha)


def test_pandalm_raters_agree_suspiciously_well(real_data: Path, tmp_path: Path) -> None:
    summary = agreed(tmp_path / "p.jsonl", pandalm(real_data), (-1, 1), bootstrap=200)
    everyone = summary["overall"]["people"]
    assert everyone["raters"] == 3 and everyone["alpha_interval"] == pytest.approx(0.86, abs=0.03)
    assert summary["overall"]["judges"] is None and len(summary["pairs"]) == 3


def test_tulu_raters_saw_the_same_pair_in_either_order(real_data: Path, tmp_path: Path) -> None:
    """16 raters share 99 pairs; whoever takes the order shown for the pair's identity finds half of them."""
    summary = agreed(tmp_path / "t.jsonl", tulu(real_data), (-2, 2), bootstrap=200)
    everyone = summary["overall"]["all"]
    assert len(summary["raters"]) == everyone["raters"] == 16 and 0 < len(summary["pairs"]) < 120
    frame = table(real_data, "tulu_human_pairs")
    units, alpha = by_the_package(frame, "response_a", "response_b", "preference_margin", "annotator")
    assert everyone["units"] == units == 99 and everyone["alpha_interval"] == pytest.approx(alpha)
    low, high = everyone["alpha_interval_95"]
    assert low < everyone["alpha_interval"] < high and high - low > 0.15
    units, ties = zip(*((row["units"], row["ties"]) for row in summary["raters"]))
    assert 0.25 < np.average(ties, weights=units) < 0.4


def test_mqm_raters_differ_in_severity(real_data: Path, tmp_path: Path) -> None:
    """Ratings without a lower bound: scaled by root mean square. Every rater is set against the mean of all others."""
    summary = agreed(tmp_path / "m.jsonl", mqm(real_data, "en-de"), None, bootstrap=50)
    assert summary["scale"] == "rms" and len(summary["raters"]) >= 8
    means = [row["mean_margin"] for row in summary["raters"] if row["units"] > 100]
    assert max(means) > 1.5 * min(means)
    assert 0.1 < summary["overall"]["people"]["alpha_ordinal"] < 0.8
    assert {row["others"] for row in summary["against"]} == {len(summary["raters"]) - 1}


@pytest.mark.parametrize("name", ["ragchecker", "tulu", "summeval, experts : crowd"])
def test_who_is_called_first_changes_nothing(real_data: Path, tmp_path: Path, name: str) -> None:
    """All units named the other way round, and a random half of them: agreement is the same to the last digit."""
    rows, scale = HUMAN_SETS[name].rows(real_data), HUMAN_SETS[name].scale
    half = np.random.default_rng(0).random(len(rows)) < 0.5
    one, *others = (
        agreed(tmp_path / "rows.jsonl", given, scale, bootstrap=50)
        for given in (rows, flipped(rows, np.ones(len(rows), bool)), flipped(rows, half))
    )
    for other in others:
        assert other["pairs"] == one["pairs"] and other["overall"] == one["overall"] and other["against"] == one["against"]


def test_experts_and_crowd_have_nothing_in_common(real_data: Path, tmp_path: Path) -> None:
    """Experts agree, the crowd agrees with itself, and the two not at all: agreement of a group is no proof that it is right."""
    experts, crowd, both = (
        agreed(tmp_path / "s.jsonl", HUMAN_SETS[f"summeval, {group}"].rows(real_data), (1, 5), bootstrap=0)
        for group in ("experts", "crowd", "experts : crowd")
    )
    assert experts["overall"]["people"]["alpha_interval"] == pytest.approx(0.69, abs=0.02)
    assert crowd["overall"]["people"]["alpha_interval"] == pytest.approx(0.46, abs=0.02)
    assert abs(both["pairs"][0]["spearman"]) < 0.05
    assert both["pairs"][0]["accuracy"] == pytest.approx(0.5, abs=0.02)
