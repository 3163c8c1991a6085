"""The two controls: matched smoothing at the mean target of the untied pairs, shuffled margins permuted among them, ties at ½ in both."""

from dataclasses import replace

import numpy as np
import pytest
from planted import planted_evidence

from mmpo.pipeline.margins import gamma_for_mean_target, sigmoid
from mmpo.train.advise import BRADLEY_TERRY, MATCHED, OWN, SHUFFLED, Setting, run_split, settings_for, splits
from mmpo.train.advise.controls import fit_settings, heads_of


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


def test_listwise_of_pairs_of_two_is_mmpo_with_the_same_gamma() -> None:
    found, features = planted_evidence(0.5, 0, prompts=80, completions=2, features=6)
    rows = [Setting("mmpo", 0.75), Setting("listwise", 0.75)]
    keys, weights = fit_settings(rows, found, features, np.random.default_rng(0), controls=False)
    x = features[found.chosen] - features[found.rejected]
    z = np.einsum("pf,fkd->pkd", x, weights)
    # the penalty is that of a mean over completions, two a pair, each seen at half the distance: strongest where decay is
    assert [key[0].loss for key in keys] == ["mmpo", "listwise"]
    assert z[:, 1, 0] == pytest.approx(z[:, 0, 0], abs=0.02)


@pytest.mark.parametrize("loss", ["ordinal", "davidson", "listwise"])
def test_losses_with_parameters_order_pairs_as_well_as_bradley_terry(loss: str) -> None:
    found, features = planted_evidence(0.8, 0, prompts=150, features=10, levels=0.5)
    rows = [Setting("dpo", ties="keep"), Setting(loss, 0.75 if loss == "listwise" else None, ties="keep")]
    _, weights = fit_settings(rows, found, features, np.random.default_rng(0))
    x = (features[found.chosen] - features[found.rejected])[found.decided]
    right = (np.einsum("pf,fkd->pkd", x, weights) > 0).mean(axis=0)
    assert right[1].max() > right[0].max() - 0.01


def test_levels_learn_from_training_prompts_alone() -> None:
    """Votes on prompts that choose or judge change nothing."""
    found, features = planted_evidence(0.5, 0, prompts=40, levels=1.0)
    votes = np.where(found.margin > 1, 3, 2).astype(float)
    found = replace(found, raters=np.full(len(votes), 3.0), preferring=votes, margin_se=np.full(len(votes), 0.5))
    split = next(splits(found, 1, 0))
    others = replace(found, preferring=np.where(split.train[found.pair_group], votes, 3 - votes))
    row = Setting("mmpo", target="levels")
    one, other = (run_split(given, features, [BRADLEY_TERRY, row], split, np.random.default_rng(0))[1] for given in (found, others))
    assert np.array_equal(one.tuned, other.tuned)
