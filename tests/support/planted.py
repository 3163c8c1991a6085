"""Planted data: grades of which a known share is linear in known features, so that what advice should say is known."""

import numpy as np

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
