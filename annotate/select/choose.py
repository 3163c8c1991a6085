"""The order in which items are asked, by a way of SELECTIONS. Ties, and what a way says nothing of, come in an order drawn by hash."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mmpo.annotate.pairings import digest_of
from mmpo.annotate.select.items import RecordItem
from mmpo.annotate.select.pool import Pool
from mmpo.annotate.select.ways import SELECTIONS, PairScores
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.progress import Progress

MOST_ONE_BY_ONE = 2_000
"""Items that are chosen one by one where each changes the scores of the others; those behind come by the scores that are left then."""
DRAWN = "drawn"
"""The reason of an item that a way says nothing of."""


class ChosenItem(NamedTuple):
    """reason: the way, or DRAWN; score: of its most urgent pair when it was chosen, None where drawn; parts: of that pair then."""

    item: RecordItem
    reason: str
    score: float | None
    parts: Mapping[str, float | None]


def in_order(
    pool: Pool,
    name: str,
    limit: int | None = None,
    per_prompt: int | None = None,
    progress: Progress | None = None,
    option: str = "--by",
) -> list[ChosenItem]:
    """The items in the order of a way, the first `limit` of them, of one prompt `per_prompt` at most; option: where the way was named.
    Raises UserError where no item has what it goes by."""
    way = SELECTIONS[name]
    scores = way.scores(pool)
    if way.needs and not np.isfinite(scores.score).any():
        raise UserError(
            f"{option} {name} needs {way.needs}, and there are none here; judge the candidates first, or use {option} random"
        )
    draws = [digest_of(pool.seed, "select", *sorted(item.ids)) for item in pool.items]
    rank = np.empty(len(draws), dtype=np.int64)
    rank[sorted(range(len(draws)), key=draws.__getitem__)] = np.arange(len(draws))
    turn = _Turn(pool, scores, rank, name, per_prompt)
    want = len(pool.items) if limit is None else limit
    while scores.asked is not None and len(turn.chosen) < min(want, MOST_ONE_BY_ONE) and (best := turn.next()) is not None:
        turn.take(best)
        turn.look(scores.asked(int(turn.pair[best])))
        if progress is not None:
            progress("choosing", len(turn.chosen), min(want, MOST_ONE_BY_ONE, len(pool.items)))
    for place in np.lexsort((rank, np.where(np.isnan(turn.score), np.inf, -turn.score))).tolist():
        if len(turn.chosen) >= want:
            break
        if turn.free[place]:
            turn.take(place)
    return turn.chosen


class _Turn:
    """What is chosen so far, and what is still free."""

    def __init__(self, pool: Pool, scores: PairScores, rank: np.ndarray, name: str, per_prompt: int | None) -> None:
        self.pool, self.rank, self.name, self.per_prompt = pool, rank, name, per_prompt
        self.free = np.ones(len(pool.items), dtype=bool)
        self.chosen: list[ChosenItem] = []
        prompts = [item.prompt_id for item in pool.items]
        self._prompt = np.unique(np.array(prompts, dtype=object), return_inverse=True)[1] if per_prompt else None
        self._used: Counter[int] = Counter()
        self.look(scores)

    def look(self, scores: PairScores) -> None:
        """Take in scores: each item has that of its most urgent pair, NaN where no pair has one; `pair` is which."""
        self.parts, items = scores.parts, self.pool.item_of
        if len(items) == len(self.pool.items):
            self.score, self.pair = scores.score, np.arange(len(items))
            return
        self.score, self.pair = np.full(len(self.pool.items), np.nan), np.full(len(self.pool.items), -1)
        order = np.lexsort((np.nan_to_num(scores.score, nan=-np.inf), items))  # an item's most urgent pair is its last
        last = order[np.append(np.diff(items) != 0, True)] if len(items) else order
        self.score[items[last]], self.pair[items[last]] = scores.score[last], last

    def next(self) -> int | None:
        """The most urgent item, of equal ones the first by hash; None where none has a score."""
        score = np.where(self.free & ~np.isnan(self.score), self.score, -np.inf)
        best = np.flatnonzero(score == score.max())
        return None if np.isneginf(score[best[0]]) else int(best[self.rank[best].argmin()])

    def take(self, place: int) -> None:
        """Choose an item."""
        score, pair = float(self.score[place]), int(self.pair[place])
        known = not np.isnan(score)
        parts = (
            {key: None if np.isnan(values[pair]) else float(values[pair]) for key, values in self.parts.items()} if known else {}
        )
        self.chosen.append(ChosenItem(self.pool.items[place], self.name if known else DRAWN, score if known else None, parts))
        self.free[place] = False
        if self.per_prompt and self._prompt is not None:
            mine = int(self._prompt[place])
            self._used[mine] += 1
            if self._used[mine] >= self.per_prompt:
                self.free[self._prompt == mine] = False
