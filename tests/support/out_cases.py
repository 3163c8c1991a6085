"""Pairs to export, of texts that tools trip over, and what a folder holds of them when they come back."""

from pathlib import Path
from typing import Any

from mmpo.pipeline import load_pairs

TEXTS = [
    "=HYPERLINK(1)",
    "+1-1",
    "naïve 日本 \u2028 \x85",
    '"quoted", <b>&amp;</b>',
    "| a | b |\n|---|---|",
    " white \t\n",
    "$x$ {y} {{z}}",
]
PROMPTS: list[Any] = [
    "Plain?",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "=1+1"}],
    [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Three?"}],
    [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "Once upon"}],
]
ID = ["prompt_id", "chosen_id", "rejected_id"]


def graded(raters: int) -> list[dict[str, Any]]:
    """Four prompts with seven replies each, graded in thirds, the sixth as the first."""
    return [
        {"prompt": prompt, "completion": text, "score": (place * (rater + 2) + number) % 5 / 3, "rater": f"r{rater}", "model": "m"}
        for number, prompt in enumerate(PROMPTS)
        for place, text in enumerate(TEXTS)
        for rater in range(raters)
    ]


def held(folder: Path, *columns: str) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """The pairs of a folder by their ids."""
    return {tuple(row[name] for name in ID): tuple(row[name] for name in columns) for row in load_pairs(folder).to_pylist()}
