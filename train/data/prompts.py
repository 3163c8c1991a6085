"""From the PAIRS table to what trains: prompts, each with its rendered completions and all its pairs.

A completion that takes part in many pairs is rendered, stored and later computed once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mmpo.train.data.pairs import Counts, check_completions, check_prompts, float_column
from mmpo.train.data.render import Rendered, Renderer


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """One prompt: completions (each once) and pairs of them.

    `chosen` and `rejected` index `completions`; with the targets `p`, the margins, the weights and `rows` (the pairs'
    rows in the table) they have shape (pairs,). `reference` holds the reference's log-probabilities, shape
    (completions,), or None.
    """

    prompt_id: str
    completions: Sequence[Rendered]
    chosen: np.ndarray
    rejected: np.ndarray
    p: np.ndarray
    margin: np.ndarray
    weight: np.ndarray
    rows: np.ndarray
    reference: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(item.ids) for item in self.completions)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(item.ids) for item in self.completions)


@dataclass(frozen=True)
class Prepared:
    """The outcome of `prepare`: in pairs = kept pairs + dropped by reason, and what rendering changed."""

    prompts: list[PromptPairs]
    counts: Counts = field(default_factory=dict)


def prepare(
    table: pa.Table,
    p: np.ndarray,
    renderer: Renderer,
    weight: str = "pair",
    source_weights: Mapping[str, float] | None = None,
) -> Prepared:
    """Renders every prompt and completion of a PAIRS table once and groups the pairs by prompt.

    `p`: targets, shape (pairs,). `weight`: "pair" gives every pair 1, "prompt" 1 / (kept pairs of its prompt);
    `source_weights` multiply it, a source that they don't name by 1. Prompts come in the order of their ids, so that
    the order of the table's rows has no influence. Raises UserError where an id stands for two texts.
    """
    prompt_ids, first, prompt_of = _unique(table, "prompt_id")
    check_prompts(table, first[prompt_of])
    prompts = table["prompt"].take(pa.array(first)).to_pylist()
    texts, sides, owners = _completions(table, prompt_of)
    margin = float_column(table, "quality_margin")
    factor = np.array([(source_weights or {}).get(name, 1.0) for name in table["source"].to_pylist()], dtype=np.float64)
    order = np.argsort(prompt_of, kind="stable")
    bounds = np.searchsorted(prompt_of[order], np.arange(len(prompt_ids) + 1))
    kept: list[PromptPairs] = []
    dropped: Counter[str] = Counter()
    # A Python loop: rendering and tokenising are per text anyway.
    for number, identity in enumerate(prompt_ids):
        rows = order[bounds[number] : bounds[number + 1]]
        prompt = renderer.prompt_ids(prompts[number])
        if prompt is None:
            dropped["prompt_not_rendered"] += len(rows)
            continue
        candidates = owners[number]
        rendered = {c: renderer.completion(prompts[number], prompt, texts[c]) for c in candidates}
        usable = np.array([all(rendered[c] is not None for c in sides[row]) for row in rows])
        dropped["completion_not_rendered"] += int((~usable).sum())
        rows = rows[usable]
        if not len(rows):
            continue
        place = {c: i for i, c in enumerate(c for c in candidates if rendered[c] is not None)}
        kept.append(
            PromptPairs(
                prompt_id=identity,
                completions=[item for c in place if (item := rendered[c]) is not None],
                chosen=np.array([place[sides[row, 0]] for row in rows]),
                rejected=np.array([place[sides[row, 1]] for row in rows]),
                p=p[rows],
                margin=margin[rows],
                weight=factor[rows] if weight == "pair" else factor[rows] / len(rows),
                rows=rows,
            )
        )
    counts = {"pairs": sum(len(item.rows) for item in kept), "prompts": len(kept), **dropped, **renderer.counts}
    if counts["pairs"] + sum(dropped.values()) != table.num_rows:
        raise RuntimeError(f"pairs do not balance: {table.num_rows} in, {counts}")
    return Prepared(kept, {name: count for name, count in counts.items() if count})


def _completions(table: pa.Table, prompt_of: np.ndarray) -> tuple[list, np.ndarray, list[list[int]]]:
    """All distinct completions: their messages, each pair's two (pairs, 2), and each prompt's completions."""
    identities = np.array([*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()], dtype=object)
    codes = np.unique(identities, return_inverse=True)[1].reshape(-1)
    _, first = np.unique(codes, return_index=True)
    check_completions(table, identities, prompt_of, first[codes])
    count = table.num_rows
    in_chosen = first < count
    texts: list = [None] * len(first)
    for mask, column, shift in ((in_chosen, "chosen", 0), (~in_chosen, "rejected", count)):
        places = np.flatnonzero(mask)
        for place, text in zip(places, table[column].take(pa.array(first[places] - shift)).to_pylist(), strict=True):
            texts[place] = text
    owners: list[list[int]] = [[] for _ in range(int(prompt_of.max()) + 1 if count else 0)]
    for completion, row in enumerate(np.where(in_chosen, first, first - count)):
        owners[prompt_of[row]].append(completion)
    return texts, codes.reshape(2, count).T, owners


def _unique(table: pa.Table, column: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sorted distinct values of a string column, the first row of each, and each row's code."""
    values, first, codes = np.unique(np.array(table[column].to_pylist(), dtype=object), return_index=True, return_inverse=True)
    return values.tolist(), first, codes.reshape(-1)
