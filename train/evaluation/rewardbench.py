"""RewardBench: its rows as pairs without margins, and a model's accuracy by subset, section and on average.

The arithmetic is `mmpo.pipeline.metrics.rewardbench`. Its rows have no margins, so that no measure against targets is defined.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import (
    by_source,
    pair_measures,
    rewardbench_average,
    rewardbench_sections,
    rewardbench_subsets,
    subset_accuracies,
)
from mmpo.pipeline.sources import BadRow, read_message, split_pair
from mmpo.pipeline.storage import plan, resolve_inputs, rows
from mmpo.pipeline.tables import PAIRS, completion_id, prompt_id
from mmpo.train.data import check_rows
from mmpo.train.messages import warn

_COLUMNS = {"subset", "chosen", "rejected"}


def rewardbench_pairs(data: str | Path) -> pa.Table | None:
    """The rows of a file in RewardBench's format (prompt, chosen, rejected as texts or messages, subset) as PAIRS: the source is
    the subset, and every margin 1, which stands for nothing but which one is better. RewardBench 2's lists of replies become every
    pair of a correct and an incorrect one. None for a folder or a Parquet file of anything else.

    Raises UserError where a row is no pair, or a file that is no Parquet lacks the columns.
    """
    path = Path(data)
    if not path.is_file():
        return None
    [file] = resolve_inputs([path], "rewardbench")
    found: list[dict[str, Any]] = []
    lists = 0
    for chunk in plan([file]):
        for number, row in rows(chunk, lambda number, reason, _: _refuse(path, number, reason)):
            if not row.keys() >= _COLUMNS or "quality_margin" in row:
                return _no_benchmark(path, file.kind, row.keys())
            several = _listed(row["chosen"]) and _listed(row["rejected"])
            lists += several
            for chosen, rejected in product(row["chosen"], row["rejected"]) if several else [(row["chosen"], row["rejected"])]:
                found.append(_pair(path, number, row, chosen, rejected))
    if not found:
        return _no_benchmark(path, file.kind, ())
    if lists:
        warn(
            [
                f"{path}: {lists:,} rows of several replies are read as {len(found):,} pairs: accuracy is that of pairs, not best of 4"
            ]
        )
    table = pa.Table.from_pylist(found, schema=PAIRS)
    check_rows(table, str(path))
    return table


def rewardbench_measures(values: Mapping[str, np.ndarray], subsets: np.ndarray) -> dict[str, Any]:
    """The measures that need no targets over all rows; "subsets", the same of each; "sections" and their "average" over the
    published subsets that are there, None without any. values: of `pair_values`; subsets: (pairs,). Equal scores are wrong.
    """
    what = "score" if "score/chosen" in values else "ratio"
    accuracies = subset_accuracies(values[f"{what}/chosen"], values[f"{what}/rejected"], subsets.tolist())
    sections = rewardbench_sections({name: value for name, value in accuracies.items() if name in rewardbench_subsets()})
    decided = {name: values[name] for name in ("z", "margin")}
    parts = [{"subset": row.pop("source"), **row} for row in by_source(decided, subsets)]
    return {
        "pairs": len(subsets),
        **pair_measures(decided),
        "subsets": parts,
        "sections": sections,
        "average": rewardbench_average(sections) if sections else None,
    }


def _listed(replies: Any) -> bool:
    """Whether these are several replies as texts, and no messages."""
    return isinstance(replies, list) and bool(replies) and all(isinstance(reply, str) for reply in replies)


def _no_benchmark(path: Path, kind: str, columns: Iterable[str]) -> None:
    if kind != "parquet":
        told = ", ".join(map(repr, columns)) or "none"
        raise UserError(
            f"{path}: RewardBench's rows have the columns {', '.join(sorted(_COLUMNS))} and prompt; those here: {told}. Pairs with margins "
            "are read from a dataset folder or its Parquet files (mmpo build)"
        )


def _pair(path: Path, number: int, row: Mapping[str, Any], chosen: Any, rejected: Any) -> dict[str, Any]:
    try:
        prompt, chosen, rejected = split_pair(row.get("prompt"), chosen, rejected)
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = [{"role": role, "content": text} for role, text in map(read_message, prompt)]
        identity = prompt_id(messages)
    except (BadRow, TypeError, ValueError) as error:
        _refuse(path, number, str(error))
    return {
        "prompt_id": identity,
        "chosen_id": completion_id(identity, chosen),
        "rejected_id": completion_id(identity, rejected),
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "quality_margin": 1.0,
        "source": str(row["subset"]),
    }


def _refuse(path: Path, number: int, reason: str) -> Any:
    raise UserError(f"{path}, row {number}: no pair of RewardBench ({reason}): a row has prompt, subset, and two different replies")
