"""Features of every completion, once: a bag of n-grams and style figures, or a language model's hidden states. All that is fitted is
fitted on the completions of training prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmpo.train.advise.evidence import Evidence

Fit = Callable[[np.ndarray], np.ndarray]
"""From the places of the training prompts' completions to the features of all completions, float32, (completions, features)."""

COMPONENTS = 192
STYLE = ("characters", "lines", "list_lines", "code", "digits", "word_length", "distinct_words", "words_of_the_prompt")
_WORD = re.compile(r"(?u)\b\w+\b")
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


def bag(found: Evidence) -> Fit:
    """1–2-grams by tf-idf, cut to 192 components, and 8 style figures; every feature with mean 0 and deviation 1 over the training
    completions.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    style = style_figures(found)
    try:
        counts = CountVectorizer(ngram_range=(1, 2), min_df=2, max_features=200_000, dtype=np.float32).fit_transform(found.texts)
    except ValueError:  # no word in two texts
        counts = None

    def fit(training: np.ndarray) -> np.ndarray:
        parts = [style] if counts is None else [_components(counts, training), style]
        return standardised(np.concatenate(parts, axis=1), training)

    return fit


def _components(counts: Any, training: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    train = counts[training]
    seen = np.flatnonzero(train.getnnz(axis=0) >= 2)
    kept = min(COMPONENTS, len(seen) - 1, len(training) - 1)
    if kept < 1:
        return np.zeros((counts.shape[0], 0), dtype=np.float32)
    weigh = TfidfTransformer(sublinear_tf=True).fit(train[:, seen])
    svd = TruncatedSVD(kept, n_iter=2, random_state=0).fit(weigh.transform(train[:, seen]))
    return svd.transform(weigh.transform(counts[:, seen]))


def style_figures(found: Evidence) -> np.ndarray:
    """Figures of a text's form, in the order of STYLE, float32, (completions, 8)."""
    asked = [set(_WORD.findall(" ".join(message["content"] for message in prompt).lower())) for prompt in found.prompts]
    rows = []
    for text, prompt in zip(found.texts, found.prompt_of.tolist(), strict=True):
        words = _WORD.findall(text.lower())
        size, count = max(len(text), 1), max(len(words), 1)
        rows.append(
            (
                np.log1p(len(text)),
                np.log1p(text.count("\n")),
                np.log1p(len(_LIST.findall(text))),
                np.log1p(text.count("`")),
                np.sqrt(sum(map(str.isdigit, text)) / size),
                sum(map(len, words)) / count,
                len(set(words)) / np.sqrt(count),
                sum(word in asked[prompt] for word in words) / count,
            )
        )
    return np.array(rows, dtype=np.float32).reshape(-1, len(STYLE))


def standardised(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 over the training rows; what does not vary there is left out. float32."""
    mean, deviation = values[training].mean(axis=0), values[training].std(axis=0)
    kept = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return ((values[:, kept] - mean[kept]) / deviation[kept]).astype(np.float32)


def fixed(values: np.ndarray, components: int | None = None) -> Fit:
    """Features that are known: standardised, or rotated to their principal components first where `components` says how many to keep."""

    def fit(training: np.ndarray) -> np.ndarray:
        if components is None or min(values.shape[1], len(training) - 1) <= components:
            return standardised(values, training)
        from sklearn.decomposition import PCA

        pca = PCA(components, random_state=0).fit(values[training])
        return standardised(pca.transform(values), training)

    return fit


FEATURES: dict[str, Callable[[Evidence], Fit]] = {"bag": bag}
"""What `--features` takes by name; anything else is a language model."""
