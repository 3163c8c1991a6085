"""Pairs of known truth, for calibration: a grader's margins, people's answers, and what people would say on average."""

from typing import Any, NamedTuple

import numpy as np

LIMIT = 3


class World(NamedTuple):
    """Arrays of shape (pairs,) but answers, (pairs, people): prompt, the grader's margin, people's grades from −3 to 3 and their mean over
    all people."""

    prompt: np.ndarray
    margin: np.ndarray
    answers: np.ndarray
    expected: np.ndarray


def world(seed: int, pairs: int = 600, per_prompt: int = 2, people: int = 2, beyond: float = 0.6, noise: float = 0.8) -> World:
    """People see 2·tanh(margin/1.5) and something of their own beyond it, each with noise of its own, and answer in whole steps."""
    from scipy.stats import norm

    random = np.random.default_rng(seed)
    margin = random.normal(0, 1.5, pairs)
    seen = 2 * np.tanh(margin / 1.5) + random.normal(0, beyond, pairs)
    answers = np.clip(np.round(seen[:, None] + random.normal(0, noise, (pairs, people))), -LIMIT, LIMIT)
    steps = np.arange(-LIMIT, LIMIT + 1)
    cuts = np.concatenate([[-np.inf], steps[:-1] + 0.5, [np.inf]])
    expected = np.diff(norm.cdf((cuts - seen[:, None]) / noise), axis=1) @ steps
    return World(np.arange(pairs) // per_prompt, margin, answers, expected)


def rows_of(made: World, labelled: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the format jsonl: the grader `judge` on every pair in both orders, leaning .5 toward the first, and people on the first
    pairs."""
    texts = [(f"answer {i} a", f"answer {i} b") for i in range(len(made.margin))]
    judged = [
        {"prompt": f"question {p}", "first": first, "second": second, "gap": round(sign * m + 0.5, 9), "rater": "judge"}
        for p, m, (a, b) in zip(made.prompt.tolist(), made.margin.tolist(), texts)
        for first, second, sign in ((a, b, 1), (b, a, -1))
    ]
    graded = [
        {
            "prompt": f"question {made.prompt[i]}",
            "first": texts[i][0],
            "second": texts[i][1],
            "gap": float(grade),
            "rater": f"person {r}",
        }
        for i in range(labelled)
        for r, grade in enumerate(made.answers[i])
    ]
    return judged, graded


def asked_once(seed: int, twice: int, bias: float, pairs: int = 200) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows likewise: a judge of this bias that was asked about each pair in one order, drawn at random, and about the first `twice` in the
    other as well, answering in whole steps with noise of its own; two people on every pair."""
    random = np.random.default_rng([seed, 12])
    judged, graded = [], []
    for i, truth in enumerate(random.normal(0, 1, pairs).tolist()):
        row = {"prompt": f"question {i}", "first": f"answer {i} a", "second": f"answer {i} b"}
        turned = {**row, "first": row["second"], "second": row["first"]}
        for shown, sign in ((row, 1), (turned, -1))[: 1 + (i < twice)]:
            gap = float(np.clip(np.round(1.2 * sign * truth + bias + random.normal(0, 0.9)), -LIMIT, LIMIT))
            judged.append({**shown, "gap": gap, "rater": "judge"})
        for name in ("anna", "ben"):
            gap = float(np.clip(np.round(1.2 * truth + random.normal(0, 0.7)), -LIMIT, LIMIT))
            graded.append({**row, "gap": gap, "rater": name})
    return judged, graded
