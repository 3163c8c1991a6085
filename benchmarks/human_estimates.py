"""benchmarks/human.py: ways to merge raters' grades into one score an answer; ours by `build_pairs`, the others by a few lines here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from human_sets import mqm

from mmpo.pipeline import build_pairs
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.sources import FeedbackBuilder

__all__ = ["ESTIMATES", "Segments", "merged"]


class Segments(NamedTuple):
    """Grades, one a rater and answer (repeats averaged), sorted by segment, answer and rater.

    prompt, item, rater, value: shape (grades,); of_item: the prompt of each item; texts: prompt and answer of each item.
    """

    prompt: np.ndarray
    item: np.ndarray
    rater: np.ndarray
    value: np.ndarray
    of_item: np.ndarray
    texts: list[tuple[str, str]]
    names: list[str]

    @property
    def items(self) -> int:
        return len(self.of_item)

    @property
    def prompts(self) -> int:
        return int(self.of_item.max()) + 1

    @staticmethod
    def read(folder: Path, languages: str) -> "Segments":
        rows = pd.DataFrame(mqm(folder, languages))
        rows = rows[rows["completion"].str.strip() != ""]
        grades = rows.groupby(["prompt", "completion", "rater"], as_index=False)["score"].mean()
        keys = pd.MultiIndex.from_frame(grades[["prompt", "completion"]])
        item, texts = pd.factorize(keys)
        prompt, _ = pd.factorize(grades["prompt"])
        rater, names = pd.factorize(grades["rater"], sort=True)
        of_item = np.zeros(len(texts), dtype=np.int64)
        of_item[item] = prompt
        return Segments(prompt, item, rater, grades["score"].to_numpy(), of_item, list(texts), [str(name) for name in names])

    def take(self, kept: np.ndarray) -> "Segments":
        return self._replace(prompt=self.prompt[kept], item=self.item[kept], rater=self.rater[kept], value=self.value[kept])

    def feedback(self) -> tuple[pa.Table, dict[str, int]]:
        """FEEDBACK of these grades, and the item of each completion's id."""
        out, place = FeedbackBuilder("mqm"), -1
        made: dict[int, int] = {}
        for prompt, item, rater, value in zip(self.prompt.tolist(), self.item.tolist(), self.rater.tolist(), self.value.tolist()):
            text, answer = self.texts[item]
            if prompt != place:
                place, _ = prompt, out.prompt(text)
            made[item] = out.completion(answer)
            out.rating(made[item], value, rater=self.names[rater], kind="human")
        table = narrow(out.finish())
        ids = [completion["id"] for row in table["completions"].to_pylist() for completion in row]
        return table, dict(zip(ids, made, strict=True))


def _by_build(**options: Any) -> Callable[[Segments, pa.Table, dict[str, int]], np.ndarray]:
    def scores(data: Segments, table: pa.Table, items: dict[str, int]) -> np.ndarray:
        pairs = build_pairs(table, **options)
        result = np.full(data.items, np.nan)
        for side in ("chosen", "rejected"):
            result[[items[name] for name in pairs[f"{side}_id"].to_pylist()]] = pairs[f"score_{side}"].to_numpy()
        return result

    return scores


def _mean(data: Segments, value: np.ndarray) -> np.ndarray:
    """The mean grade of each item, NaN where it has none."""
    n = np.bincount(data.item, minlength=data.items)
    return np.where(n > 0, np.bincount(data.item, weights=value, minlength=data.items) / np.maximum(n, 1), np.nan)


def _offset(data: Segments, *_: Any) -> np.ndarray:
    """Each rater's mean deviation from all grades is subtracted; nothing needs to be shared."""
    n = np.maximum(np.bincount(data.rater), 1)
    return _mean(data, data.value - (np.bincount(data.rater, weights=data.value) / n - data.value.mean())[data.rater])


def _shrunk(data: Segments, *_: Any) -> np.ndarray:
    """Item means drawn to their prompt's mean by empirical Bayes, method of moments: few grades, much noise, little margin."""
    mean, n = _mean(data, data.value), np.bincount(data.item, minlength=data.items)
    known = n > 0
    degrees = int((n[known] - 1).sum())
    if not degrees:
        return mean
    noise = float(((data.value - mean[data.item]) ** 2).sum()) / degrees
    sizes = np.bincount(data.of_item, weights=n, minlength=data.prompts)
    center = np.bincount(data.prompt, weights=data.value, minlength=data.prompts) / np.maximum(sizes, 1)
    deviation = mean - center[data.of_item]
    left = int(known.sum()) - int((sizes > 0).sum())
    real = (float((deviation[known] ** 2).sum()) - noise * float((1 / n[known] - 1 / sizes[data.of_item][known]).sum())) / left
    real = max(real, 1e-3 * noise)
    return np.where(known, center[data.of_item] + deviation * real / (real + noise / np.maximum(n, 1)), np.nan)


ESTIMATES: dict[str, Callable[[Segments, pa.Table, dict[str, int]], np.ndarray]] = {
    "mean": _by_build(),
    "mean + rater offset": _offset,
    "shrunk mean": _shrunk,
    "zscore, then mean": _by_build(normalise="zscore"),
    "rater-effects": _by_build(merge_raters="rater-effects"),
    "rater-effects, equal": _by_build(merge_raters="rater-effects", rater_weights="equal"),
}


def merged(data: Segments, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Every way's score of each item from the grades that are kept, shape (items,), NaN where there is none."""
    left = data.take(kept)
    table, items = left.feedback()
    return {name: estimate(left, table, items) for name, estimate in ESTIMATES.items()}
