"""A benchmark's own rows (RewardBench 1 and 2, RM-Bench) as pairs without margins, and back: from pairs' values to scored rows.

The arithmetic is `mmpo.pipeline.metrics.suites`. Every correct completion of a row is paired with every incorrect one, so that all get a
value.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.metrics import SUITES, ScoredRow, check_columns, file_rows, listed_texts, suite_like
from mmpo.pipeline.sources import BadRow, as_reply, read_message, split_pair
from mmpo.pipeline.storage import resolve_inputs
from mmpo.pipeline.tables import MESSAGE_KEYS, PAIRS, REPLY_KEYS, completion_id, held_keys, prompt_id, with_keys
from mmpo.train.data import check_rows


@dataclass(frozen=True)
class SuitePairs:
    """A suite's rows as PAIRS (source: the subset; every margin 1, which says nothing but which one is better).

    row, correct, incorrect: of each pair the row of the file and the places of its two completions in it, shape (pairs,); subsets, ids,
    sizes: of each row its subset, its id, and how many correct and incorrect completions it has.
    """

    suite: str
    pairs: pa.Table
    row: np.ndarray
    correct: np.ndarray
    incorrect: np.ndarray
    subsets: list[str]
    ids: list[str]
    sizes: list[tuple[int, int]]

    def scored(self, at: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> tuple[list[ScoredRow], int]:
        """The rows all of whose completions have a value, and how many rows lack one.

        at: places of the pairs that were measured; chosen, rejected: their completions' values, shape (measured,) each.
        """
        values = [(np.full(good, np.nan), np.full(bad, np.nan)) for good, bad in self.sizes]
        for pair, *scores in zip(at.tolist(), chosen.tolist(), rejected.tolist(), strict=True):
            for side, places, score in zip(values[self.row[pair]], (self.correct, self.incorrect), scores, strict=True):
                side[places[pair]] = score
        whole = [bool(np.isfinite(np.concatenate(row)).all()) for row in values]
        rows = [
            ScoredRow(self.subsets[row], self.ids[row], *(tuple(side.tolist()) for side in values[row]))
            for row in range(len(values))
            if whole[row]
        ]
        return rows, len(values) - len(rows)


def suite_pairs(data: str | Path, suite: str | None = None) -> SuitePairs | None:
    """The rows of a benchmark's file: prompt, subset (rm-bench: domain), chosen and rejected, each a text or messages, or for rewardbench2
    and rm-bench lists of texts. suite: a name of SUITES; by default what the first row looks like.

    None for a folder or a Parquet file of anything else where no suite is named. Raises UserError where a row is none of the suite's, or a
    file that is no Parquet lacks the columns.
    """
    if suite is not None and suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    path = Path(data)
    if not path.is_file():
        if suite is not None:
            raise UserError(
                f"{path} is no file: --suite {suite} reads the benchmark's own rows from one, .jsonl, .json or .parquet"
            )
        return None
    [file] = resolve_inputs([path], suite or "rewardbench")
    found = _Found(path)
    for number, row in file_rows(file):
        if not found.sizes:
            if suite is None and "quality_margin" in row and file.kind == "parquet":
                return None
            name = suite or suite_like(row)
            if name is None:
                return _no_benchmark(path, file.kind, row.keys())
            found.suite = name
            check_columns(path, row, (SUITES[name].group, "prompt", "chosen", "rejected"), f"rows of {name}")
        found.add(number, row)
    return found.finish() if found.sizes else _no_benchmark(path, file.kind, ())


def _no_benchmark(path: Path, kind: str, columns: Iterable[str]) -> None:
    if kind != "parquet":
        told = ", ".join(map(repr, columns)) or "none"
        raise UserError(
            f"{path}: RewardBench's rows have the columns chosen, rejected, subset and prompt; those here: {told}. Pairs with margins "
            "are read from a dataset folder or its Parquet files (mmpo build)"
        )


class _Found:
    """What was read of a suite's file so far."""

    def __init__(self, path: Path) -> None:
        self.path, self.suite = path, ""
        self.pairs: list[dict[str, Any]] = []
        self.places: list[tuple[int, int, int]] = []
        self.subsets: list[str] = []
        self.ids: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """One row of the file."""
        suite = SUITES[self.suite]
        sides: list[Sequence[Any]] = [row.get("chosen"), row.get("rejected")]  # type: ignore[list-item]
        if suite.sides == 1:
            sides = [[side] for side in sides]
        elif not all(map(listed_texts, sides)) or any(len(side) != suite.sides for side in sides if suite.sides):
            self._refuse(number, f"chosen and rejected are lists of {suite.sides or 'several'} texts")
        if not isinstance(row.get(suite.group), str):
            self._refuse(number, f"{suite.group} is no text")
        for i, chosen in enumerate(sides[0]):
            for j, rejected in enumerate(sides[1]):
                if suite.sides != 1 and chosen == rejected:
                    continue  # the row then lacks a value, which is counted
                self.pairs.append(self._pair(number, row, chosen, rejected))
                self.places.append((len(self.sizes), i, j))
        self.subsets.append(row[suite.group])
        self.ids.append(str(row.get("id", number)))
        self.sizes.append((len(sides[0]), len(sides[1])))

    def finish(self) -> SuitePairs:
        """All rows, checked."""
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if self.suite == "rewardbench2" and twice:
            raise UserError(
                f"{self.path}: {len(twice)} ids stand in several rows, such as {twice[0]!r}: give each row one of its own"
            )
        table = pa.Table.from_pylist(self.pairs, schema=with_keys(PAIRS, MESSAGE_KEYS))
        table = table.cast(with_keys(PAIRS, held_keys(table)))
        check_rows(table, str(self.path))
        row, correct, incorrect = np.array(self.places, dtype=np.int64).T
        return SuitePairs(self.suite, table, row, correct, incorrect, self.subsets, self.ids, self.sizes)

    def _pair(self, number: int, row: Mapping[str, Any], chosen: Any, rejected: Any) -> dict[str, Any]:
        try:
            prompt, chosen, rejected = split_pair(row.get("prompt"), chosen, rejected)
            prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            messages = [dict(zip(("role", "content", *MESSAGE_KEYS), one)) for one in map(read_message, prompt)]
            replies = {name: as_reply(one) for name, one in (("chosen", chosen), ("rejected", rejected))}
            identity = prompt_id(messages)
        except (BadRow, TypeError, ValueError) as error:
            self._refuse(number, str(error))
        return {
            "prompt_id": identity,
            **{f"{name}_id": completion_id(identity, *one) for name, one in replies.items()},
            "prompt": messages,
            **{name: [{"role": "assistant", **dict(zip(("content", *REPLY_KEYS), one))}] for name, one in replies.items()},
            "quality_margin": 1.0,
            "source": row[SUITES[self.suite].group],
        }

    def _refuse(self, number: int, reason: str) -> Any:
        suite = SUITES[self.suite]
        raise UserError(
            f"{self.path}, row {number}: no row of {self.suite} ({reason}): it has prompt, {suite.group}, and different chosen and "
            f"rejected replies{'' if suite.sides == 1 else ' in lists of texts'}"
        )
