"""The two controls: matched smoothing at the mean target of the untied pairs, shuffled margins permuted among them, ties at ½ in both."""

import numpy as np
import pytest
from planted import planted_evidence

from mmpo.pipeline.margins import gamma_for_mean_target, sigmoid
from mmpo.train.advise import MATCHED, OWN, SHUFFLED, Setting, settings_for
from mmpo.train.advise.controls import heads_of


@pytest.mark.parametrize("mean", [0.6, 0.9])
def test_controls_keep_the_mean_the_distribution_and_the_ties(mean: float) -> None:
    found, _ = planted_evidence(0.5, 0, prompts=60, levels=1.0)
    tied = ~found.decided
    assert 0.1 < tied.mean() < 0.9
    heads = heads_of(Setting("mmpo", mean, ties="keep"), found, np.random.default_rng(0))
    own, matched, shuffled = (heads[role].p for role in (OWN, MATCHED, SHUFFLED))
    margin = found.margin[found.decided]
    assert own[found.decided] == pytest.approx(sigmoid(gamma_for_mean_target(margin, mean) * margin))
    assert matched[found.decided] == pytest.approx(mean, abs=1e-9)
    assert sorted(shuffled[found.decided]) == sorted(own[found.decided])
    assert (shuffled != own)[found.decided].mean() > 0.3
    assert np.all(own[tied] == 0.5) and np.all(matched[tied] == 0.5) and np.all(shuffled[tied] == 0.5)


def test_the_noise_aware_target_is_matched_by_its_own_mean() -> None:
    found, _ = planted_evidence(0.5, 0, prompts=60)
    object.__setattr__(found, "margin_se", np.full(len(found.margin), 1.0))
    row = next(row for row in settings_for(found) if row.target == "noise-aware" and row.mean_target == 0.9)
    heads = heads_of(row, found, np.random.default_rng(0))
    assert heads[OWN].p.mean() < 0.89
    assert heads[MATCHED].p == pytest.approx(heads[OWN].p.mean())


def test_ties_are_a_setting_only_where_there_are_any() -> None:
    without, _ = planted_evidence(0.5, 0, prompts=20)
    assert {row.ties for row in settings_for(without)} == {"drop"}
    tied, _ = planted_evidence(0.5, 0, prompts=20, levels=1.0)
    assert {row.ties for row in settings_for(tied)} == {"drop", "keep"}
