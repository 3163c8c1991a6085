"""Features of every completion, once: a bag of n-grams and style figures, or a language model's hidden states. All that is fitted is
fitted on the completions of training prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmpo.pipeline.errors import UserError, closest, unknown_name
from mmpo.pipeline.storage import read_parquet
from mmpo.pipeline.tables import Message
from mmpo.train.messages import warn

Fit = Callable[[np.ndarray], np.ndarray]
"""From the places of the training prompts' completions to the features of all completions, float32, (completions, features)."""

COMPONENTS, MOST_FEATURES = 192, 256
_LEAST_PART = 1e-3
"""Of the largest component: below, it is rounding in the texts that it was found in, and what others have there is no multiple of that."""
STYLE = ("characters", "lines", "list_lines", "code", "digits", "word_length", "distinct_words", "words_of_the_prompt")
_WORD = re.compile(r"(?u)\b\w+\b")
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


class Completions(Protocol):
    """What features are made of, as `Evidence` has it. prompts: conversations, each once; texts, ids: of completions; prompt_of: the
    number of each one's prompt, (completions,)."""

    @property
    def prompts(self) -> Sequence[Sequence[Message]]: ...
    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def prompt_of(self) -> np.ndarray: ...


Parts = Callable[[np.ndarray], list[np.ndarray]]
"""As Fit, the features in parts, the first of components whose variances differ."""


def bag(found: Completions) -> Fit:
    """1–2-grams by tf-idf, cut to 192 components, and 8 style figures; every feature with mean 0 and deviation 1 over the training
    completions.
    """
    parts = bag_parts(found)
    return lambda training: standardised(np.concatenate(parts(training), axis=1), training)


def bag_parts(found: Completions) -> Parts:
    """The n-grams' components as they vary, and the style figures."""
    from sklearn.feature_extraction.text import CountVectorizer

    style = style_figures(found)
    try:
        counts = CountVectorizer(ngram_range=(1, 2), min_df=2, max_features=200_000, dtype=np.float32).fit_transform(found.texts)
    except ValueError:  # no word in two texts
        counts = None

    return lambda training: [style] if counts is None else [_components(counts, training), style]


def _components(counts: Any, training: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    train = counts[training]
    seen = np.flatnonzero(train.getnnz(axis=0) >= 2)
    kept = min(COMPONENTS, len(seen) - 1, len(training) - 1)
    if kept < 1:
        return np.zeros((counts.shape[0], 0), dtype=np.float32)
    weigh = TfidfTransformer(sublinear_tf=True).fit(train[:, seen])
    with np.errstate(divide="ignore", invalid="ignore"):  # the shares that it explains, where all texts have the same n-grams
        svd = TruncatedSVD(kept, n_iter=2, random_state=0).fit(weigh.transform(train[:, seen]))
    real = svd.singular_values_ > _LEAST_PART * svd.singular_values_.max()
    return svd.transform(weigh.transform(counts[:, seen]))[:, real]


def style_figures(found: Completions) -> np.ndarray:
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
    """Features that are known, standardised; more of them than `components` are rotated to so many principal components, fewer where the
    training rows are. Those keep their proportions: a head on few pairs has little to learn from what hardly varies.
    """

    def fit(training: np.ndarray) -> np.ndarray:
        known = standardised(values, training)
        if components is None or known.shape[1] <= components or len(training) < 2:
            return known
        from sklearn.decomposition import PCA

        pca = PCA(min(components, len(training) - 1), random_state=0).fit(known[training])
        found = pca.transform(known)
        return (found / np.sqrt(max(found[training].var(axis=0).mean(), 1e-12))).astype(np.float32)

    return fit


def from_file(path: Path, found: Completions) -> np.ndarray:
    """The features of a Parquet file with the columns id (a completion's) and features (lists of one length), (completions, features)."""
    if not path.is_file():
        raise UserError(f"--features {path}: there is no such file")
    table = read_parquet(path)
    for name in ("id", "features"):
        if name not in table.column_names:
            raise unknown_name(f"column in {path}; features need id and features, and not", name, table.column_names)
    rows = dict(zip(table["id"].to_pylist(), range(table.num_rows), strict=True))
    if len(rows) < table.num_rows:
        twice = next(name for name, count in Counter(table["id"].to_pylist()).items() if count > 1)
        raise UserError(
            f"{path}: {table.num_rows - len(rows)} rows repeat an id (the first: {twice}); give every completion one row"
        )
    missing = [identity for identity in found.ids if identity not in rows]
    if missing:
        raise UserError(f"{path} has no features of {len(missing)} of the {len(found.ids)} completions (the first: {missing[0]})")
    lists = [table["features"][rows[identity]].as_py() for identity in found.ids]
    if len({len(one or ()) for one in lists}) != 1:
        raise UserError(f"{path}: features must be lists of one length for all completions")
    values = np.array(lists, dtype=np.float64)
    if not values.size:
        raise UserError(f"{path}: the lists in features are empty")
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
    if wrong:
        raise UserError(
            f"{path}: features must be finite numbers; those of {len(wrong)} completions are not (the first: {found.ids[wrong[0]]})"
        )
    if (values == values[0]).all():
        raise UserError(f"{path}: all completions have the same features, so that they tell none from another")
    return values


def of_model(model: str, found: Completions, ask: str | None = None) -> np.ndarray:
    """A model's hidden states, (completions, features); a completion that can't be rendered has those of the mean, counted aloud. ask: as
    `hidden_states` takes it."""
    from mmpo.train.inference import hidden_states

    values = hidden_states(found.prompts, found.texts, found.prompt_of, model, ask=ask)
    missing = np.isnan(values).any(axis=1)
    if missing.all():
        raise UserError(f"{model}: none of the {len(values)} completions can be rendered with its chat template")
    if missing.any():
        warn([f"{int(missing.sum())} of {len(values)} completions can't be rendered for {model}: they count as average ones"])
        values[missing] = values[~missing].mean(axis=0)
    return values


def features_of(name: str, found: Completions, values: np.ndarray | None = None, ask: str | None = None) -> Fit:
    """What `--features` names, or the values given, in the order of the completions' ids; ask: of a model. Raises UserError."""
    if ask and (values is not None or name in FEATURES or name.endswith(".parquet")):
        raise UserError(
            f"ask puts a question behind replies that a model reads, and features are {name!r}: name a model, or leave out `ask`"
        )
    if values is None and name in FEATURES:
        return FEATURES[name](found)
    values = named(name, found, ask) if values is None else values
    if values.shape[0] != len(found.texts) or values.ndim != 2 or not np.isfinite(values).all():
        raise UserError(f"features must be finite numbers of shape ({len(found.texts)}, features), not {values.shape}")
    return fixed(values, MOST_FEATURES)


def named(name: str, found: Completions, ask: str | None = None) -> np.ndarray:
    """The features of a Parquet file or a language model, (completions, features). Raises UserError."""
    if name.endswith(".parquet"):
        return from_file(Path(name), found)
    if closest(name, FEATURES, 0.6) and not Path(name).exists():
        raise unknown_name("features", name, FEATURES)
    _check_model(name)
    return of_model(name, found, ask)


def completion_features(name: str, found: Completions) -> np.ndarray:
    """Features for a head on few graded pairs, (completions, features), by what `--features` names: bag, a model, a Parquet file.

    Nothing is standardised but style figures: components that vary more between completions of a prompt weigh more, as they should where
    few pairs say which matter. n-grams and style figures vary as much as one another. Raises UserError.

    >>> import pyarrow as pa
    >>> from mmpo.annotate import select
    >>> from mmpo.pipeline import read_feedback
    >>> both = (("It is.", 5), ("No.", 2))
    >>> rows = [{"prompt": f"Is {n} even?", "completion": text, "score": score} for n in range(9) for text, score in both]
    >>> feedback = read_feedback(pa.Table.from_pylist(rows), scale=(1, 5), kind="ai")
    >>> len(select(feedback, by="gap", featurize=completion_features, features="bag", limit=2)["pairs"])
    2
    """
    everything = np.arange(len(found.texts))
    if name == "bag":
        components, *style = bag_parts(found)(everything)
        parts = [components, *(standardised(one, everything) for one in style)]
    elif name in FEATURES:
        parts = [FEATURES[name](found)(everything)]
    else:
        parts = [_principal(named(name, found))]
    prompt = found.prompt_of
    count = np.bincount(prompt)[:, None]
    scaled = []
    for part in parts:
        sums = np.zeros((len(count), part.shape[1]))
        np.add.at(sums, prompt, part)
        within = part - (sums / np.maximum(count, 1))[prompt]
        size = np.sqrt((within**2).sum(axis=1).mean()) if part.size else 0.0
        scaled.append(within / size if size > 0 else within)
    return np.concatenate(scaled, axis=1)


def _principal(values: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    kept = min(MOST_FEATURES, *values.shape)
    return PCA(kept, random_state=0).fit_transform(values) if kept < values.shape[1] else values


def _check_model(name: str) -> None:
    """UserError for a name that neither a folder nor a model has."""
    from mmpo.train.model import could_be_model

    is_file = Path(name).is_file()
    if is_file or not could_be_model(name):
        raise UserError(
            f"--features {name}: {'that is a file' if is_file else 'there is no such folder'}. It takes {', '.join(FEATURES)}, a model's "
            "folder or Hugging Face name (owner/name), or a Parquet file with the columns id and features"
        )


FEATURES: dict[str, Callable[[Completions], Fit]] = {"bag": bag}
"""What `--features` takes by name; anything else is a language model."""
