"""Planted data: grades of which a known share is linear in known features, so that what advice should say is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from folders import pairs_folder

from mmpo.pipeline import load_pairs
from mmpo.train.advise import Evidence


def planted_evidence(
    share: float, seed: int, prompts: int = 300, completions: int = 4, features: int = 40, levels: float | None = None
) -> tuple[Evidence, np.ndarray]:
    """Pairs of completions, and the features of every completion, (completions, features). share: of the grades' variance within prompts
    that the features explain, in [0, 1]; levels: grades are rounded to steps of so many deviations, which makes ties.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((prompts, completions, features))
    explained = x @ rng.standard_normal(features) / np.sqrt(features)
    grade = np.sqrt(share) * explained + np.sqrt(1 - share) * rng.standard_normal(explained.shape)
    if levels:
        grade = np.round(grade / levels) * levels
    return evidence_of_grades(grade), x.reshape(-1, features).astype(np.float32)


def evidence_of_grades(grade: np.ndarray) -> Evidence:
    """All pairs of each row of grades, (prompts, completions)."""
    prompts, completions = grade.shape
    first, second = np.triu_indices(completions, 1)
    start = np.arange(prompts)[:, None] * completions
    a, b, flat = (start + first).ravel(), (start + second).ravel(), grade.ravel()
    swap = flat[a] < flat[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    nothing = np.zeros(len(a))
    return Evidence(
        prompts=[[{"role": "user", "content": f"Question {i}?"}] for i in range(prompts)],
        prompt_ids=[f"{i:032x}" for i in range(prompts)],
        texts=[f"Answer {i}." for i in range(grade.size)],
        ids=[f"{i:032x}" for i in range(grade.size)],
        prompt_of=np.repeat(np.arange(prompts), completions),
        group=np.arange(prompts),
        chosen=a,
        rejected=b,
        margin=np.round(flat[a] - flat[b], 9),
        margin_se=nothing + np.nan,
        preferring=nothing,
        raters=nothing,
        scores=flat,
        source=np.full(len(a), "planted", dtype=object),
    )


def planted_rows(
    share: float, seed: int, prompts: int = 150, completions: int = 4, features: int = 30
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Rows of the format jsonl, one per grade, whose completions are of words that stand for the features: how often a word occurs is a
    Poisson count, and the grade is linear in the counts to the share given. Also each text's counts.
    """
    rng = np.random.default_rng([seed, 5])
    counts = rng.poisson(1.5, (prompts, completions, features))
    explained = (counts - 1.5) @ rng.standard_normal(features) / np.sqrt(1.5 * features)
    grade = np.sqrt(share) * explained + np.sqrt(1 - share) * rng.standard_normal(explained.shape)
    ends = (("ano", "elu", "iro", "oxa", "umi"), ("ade", "eno", "ika", "osu", "uri"))
    words = np.array([f"{a}{b}" for half in ends for a in "bdfgklmnprst" for b in half])[:features]
    rows, known = [], {}
    for prompt in range(prompts):
        for one in range(completions):
            text = " ".join(rng.permutation(np.repeat(words, counts[prompt, one])).tolist()) + f" {prompt}.{one}"
            known[text] = counts[prompt, one].astype(np.float64)
            rows.append({"prompt": f"Question {prompt}?", "completion": text, "score": round(float(grade[prompt, one]), 6)})
    return rows, known


def planted_table(
    share: float, seed: int, folder: Path, *, shuffled: bool = False, prompts: int = 300, features: int = 120
) -> tuple[pa.Table, np.ndarray]:
    """PAIRS of `planted_rows`, and the features of their completions in the order of the ids. shuffled: margins of other pairs."""
    rows, known = planted_rows(share, seed, prompts, features=features)
    table = load_pairs(pairs_folder(folder, rows))
    text = {}
    for side in ("chosen", "rejected"):
        text |= {one: messages[0]["content"] for one, messages in zip(table[f"{side}_id"].to_pylist(), table[side].to_pylist())}
    if shuffled:
        margin = np.random.default_rng(seed).permutation(table["quality_margin"].to_numpy())
        table = table.set_column(table.column_names.index("quality_margin"), "quality_margin", pa.array(margin))
    return table, np.stack([known[text[one]] for one in sorted(text)])


def with_raters(rows: list[dict[str, Any]], how: str, seed: int) -> list[dict[str, Any]]:
    """The rows as two raters give them: `same`, `scales` (each prompt by one, one of them on a scale five times as wide) or `shifted` (each
    completion by one of them, one of them two deviations milder).
    """
    rng = np.random.default_rng([seed, 9])
    who = {prompt: int(rng.integers(2)) for prompt in dict.fromkeys(row["prompt"] for row in rows)}
    found = []
    for row in rows:
        rater = int(rng.integers(2)) if how == "shifted" else who[row["prompt"]]
        score = row["score"] * (5 if how == "scales" and rater else 1) + (2 if how == "shifted" and rater else 0)
        found.append({**row, "score": round(score, 6), "rater": f"rater-{rater}"})
    return found
