"""Votes on pairs by raters that made no part of their margins, from a file."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.storage import read_parquet

_VOTES = ("chosen_id", "rejected_id", "preferring", "raters")


class Votes:
    """The votes in a Parquet file with chosen_id, rejected_id, preferring and raters; rows of one pair, either way round,
    are added up, and counted in `repeated`. Reading it checks it: UserError names the row that holds no votes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.repeated = 0
        self._sums: dict[tuple[str, str], tuple[float, float]] = {}
        try:
            table = read_parquet(path)
        except UserError as error:
            raise UserError(
                f"{error}. Votes are a Parquet file with a row a pair and the columns {', '.join(_VOTES)}, as "
                "`pandas.read_json('votes.jsonl', lines=True).to_parquet('votes.parquet')` makes it of JSON lines with these keys"
            ) from error
        for name in _VOTES:
            if name not in table.column_names:
                raise unknown_name(f"column in {path}; votes need {', '.join(_VOTES)}, and not", name, table.column_names)
        for row, values in enumerate(zip(*(table[name].to_pylist() for name in _VOTES), strict=True)):
            self._add(row, *values)

    def of(self, pairs: pa.Table) -> np.ndarray:
        """Votes for the chosen completion and all votes, (pairs, 2), 0 and 0 where there are none.

        pairs: a table with chosen_id and rejected_id. Raises UserError where not one of the pairs has votes.
        """
        ids = zip(pairs["chosen_id"].to_pylist(), pairs["rejected_id"].to_pylist(), strict=True)
        found = np.array([self._sums.get(pair, (0.0, 0.0)) for pair in ids], dtype=np.float64).reshape(-1, 2)
        if not found[:, 1].any():
            raise UserError(
                f"none of the {len(found)} measured pairs has votes in {self.path} ({len(self._sums) // 2} pairs): its chosen_id and "
                "rejected_id must be those of the dataset; is it of another dataset or split?"
            )
        return found

    def counts(self, pairs: pa.Table) -> dict[str, int]:
        """pairs: of how many the file has votes; matched, unmatched: how many of them are in a table with chosen_id and rejected_id, and
        how many are not; repeated_rows: rows of a pair that an earlier row is of.
        """
        ids = set(zip(pairs["chosen_id"].to_pylist(), pairs["rejected_id"].to_pylist(), strict=True))
        total = len(self._sums) // 2
        matched = sum((one, other) in ids or (other, one) in ids for one, other in self._sums if one < other)
        return {"pairs": total, "matched": matched, "unmatched": total - matched, "repeated_rows": self.repeated}

    def warnings(self, pairs: pa.Table) -> list[str]:
        """What of the file may not be meant, in words: votes on pairs that the table lacks, and pairs in several rows."""
        counts, found = self.counts(pairs), []
        if counts["unmatched"]:
            found.append(
                f"{self.path}: {counts['unmatched']:,} of the {counts['pairs']:,} pairs with votes are not among the {pairs.num_rows:,} "
                "here (by chosen_id and rejected_id, either way round): their votes are left out"
            )
        if counts["repeated_rows"]:
            found.append(
                f"{self.path}: rows of a pair that an earlier row is of: {counts['repeated_rows']:,}. Their votes are added up; if they "
                "are the same votes again, leave these rows out"
            )
        return found

    def _add(self, row: int, chosen: Any, rejected: Any, preferring: Any, raters: Any) -> None:
        numbers = _number(preferring) and _number(raters) and 0 <= preferring <= raters
        if not numbers or not isinstance(chosen, str) or not isinstance(rejected, str) or chosen == rejected:
            raise UserError(
                f"{self.path}, row {row}: chosen_id {chosen!r}, rejected_id {rejected!r}, preferring {preferring!r}, raters {raters!r}: "
                "votes are two different ids and numbers with 0 <= preferring <= raters"
            )
        self.repeated += (chosen, rejected) in self._sums
        for pair, votes in (((chosen, rejected), preferring), ((rejected, chosen), raters - preferring)):
            before = self._sums.get(pair, (0.0, 0.0))
            self._sums[pair] = (before[0] + votes, before[1] + raters)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
