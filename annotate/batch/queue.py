"""How much of ours the provider's queue of batches bears: learnt, because its limit counts the tokens of a whole organisation.

All times are seconds of a monotonic clock, given by the caller, so that the rules can be tested without waiting.
"""

from math import inf

from mmpo.annotate.client import backoff

MAX_OPEN_BATCHES = 10
MAX_POLLS_HELD = 20
"""Looks at the batches between two tries, at most, while the queue is full and none of ours is in it."""
GROWTH = 1.25


class Queue:
    """most: requests a batch. poll: seconds between looks. room: requests that may wait at once, as far as is known."""

    def __init__(self, most: int, poll: float) -> None:
        self.most, self.poll = most, poll
        self.room = inf
        self.held_until = 0.0
        self._refused = 0

    def part(self, waiting: int, batches: int, now: float) -> int:
        """How many requests another batch may hold beside `waiting` ones in so many batches; 0: none may be sent now."""
        if batches >= MAX_OPEN_BATCHES or now < self.held_until:
            return 0
        part = int(min(self.most, max(1, self.room / 2)))
        return part if not batches or waiting + part <= self.room else 0

    def full(self, requests: int, waiting: int, now: float) -> None:
        """There was no room for a batch of so many requests beside `waiting` ones: smaller parts, and none before there is room.

        With others of ours in the queue that is when one of them has ended, else after a wait that doubles.
        """
        self.room = max(1.0, waiting + requests / 2)
        if waiting:
            self.held_until = inf
            return
        self._refused += 1
        self.held_until = now + self.poll * backoff(self._refused - 1, first=1, longest=MAX_POLLS_HELD)

    def ended(self, *, well: bool) -> None:
        """A batch of ours has left the queue; well: it had been worked on."""
        self.held_until = 0.0
        if well:
            self._refused = 0
            self.room *= GROWTH
