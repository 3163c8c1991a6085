"""Features that are known: standardised, and of many the principal components in their own proportions."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmpo.train.advise import bag, fixed


def distances(rows):
    return ((rows[:, None] - rows[None]) ** 2).sum(-1)


@pytest.mark.parametrize("width", [90, 300])  # more than asked for, and more than the training rows allow
def test_components_of_many_features_keep_their_proportions(width):
    draw = np.random.default_rng(0)
    latent = draw.normal(size=(60, 3)) @ (draw.normal(size=(3, width)) * 5) + draw.normal(size=(60, width))
    values = latent * draw.uniform(0.1, 9, width) + 7  # units of their own
    training = np.arange(40)
    known, found = fixed(values)(training), fixed(values, 64)(training)
    assert found.shape == (60, 39) and found.dtype == np.float32
    assert found[training].mean(axis=0) == pytest.approx(np.zeros(39), abs=1e-4)
    assert found[training].var(axis=0).mean() == pytest.approx(1, abs=1e-4)
    # Nothing of the training rows is lost but one factor: a rotation. Not so with each component's variance 1.
    ratio = distances(found)[:40, :40] / np.where(np.eye(40), 1, distances(known)[:40, :40])
    assert ratio[~np.eye(40, dtype=bool)] == pytest.approx(ratio[0, 1], rel=1e-3)
    assert found[training].var(axis=0)[:3].sum() > 0.8 * 39


def test_few_features_are_standardised():
    values = np.random.default_rng(0).normal(3, [1, 20, 300], size=(50, 3))
    found = fixed(values, 64)(np.arange(30))
    assert found[:30].std(axis=0) == pytest.approx(np.ones(3), abs=1e-4)


def test_what_texts_of_few_words_leave_to_rounding_is_no_feature():
    """Four n-grams that always come together are one component; a text that has two of them must not be a thousand times as far off."""
    texts = [f"{'red sky' if n % 2 else 'blue sea'} {'very ' * (n % 5)}calm" for n in range(40)] + [
        "red sea very",
        "blue calm calm sky",
    ] * 2
    found = SimpleNamespace(
        prompts=[[{"role": "user", "content": "How is it?"}]], texts=texts, prompt_of=np.zeros(len(texts), dtype=int)
    )
    values = bag(found)(np.arange(40))
    assert np.abs(values[:40]).max() < 10 and np.abs(values).max() < 100
