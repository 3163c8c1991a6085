"""What the first process does beside computing reference values: it looks them up, saves them and shows the progress."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from mmpo.pipeline.errors import MmpoError
from mmpo.train.inference.reference_store import CACHED, ReferenceCache

__all__ = ["ReferenceBook", "ReferenceProgress"]

_LINE_SECONDS = 5.0


class ReferenceBook:
    """The keys of a run's completions, the cache if there is one, and what of the values is not saved yet.

    keys: (completions,), each once. prompt_ids, tokens: of each key's prompt and completion. save_seconds: how much work
    may be lost by a kill.
    """

    def __init__(
        self,
        keys: Sequence[bytes],
        prompt_ids: Sequence[str],
        tokens: Sequence[int],
        opened: Callable[[], ReferenceCache] | None,
        save_seconds: float,
    ) -> None:
        self.keys, self.prompt_ids, self.tokens = keys, prompt_ids, tokens
        self.opened, self.save_seconds = opened, save_seconds
        self.cache: ReferenceCache | None = None
        self.unsaved: list[tuple[np.ndarray, np.ndarray]] = []
        self.saved_at = time.monotonic()

    def known(self) -> np.ndarray:
        """Opens the cache: what it has of every key, (completions,), NaN where it has none."""
        self.cache = self.opened() if self.opened is not None else None
        if self.cache is None:
            return np.full(len(self.keys), np.nan)
        values = self.cache.lookup(self.keys)
        missing = int(np.isnan(values).sum())
        _say(f"{len(values) - missing} of {len(values)} completions are in {self.cache.path}, {missing} to compute")
        if missing:
            self.cache.add(CACHED.empty_table())  # before hours of work: can it be written, and is it ours?
        return values

    def note(self, places: np.ndarray, values: np.ndarray) -> None:
        """Takes new values, (new,), of the keys at these places, and saves from time to time."""
        self.unsaved.append((places, values))
        if time.monotonic() - self.saved_at >= self.save_seconds:
            self.save()

    def save(self) -> None:
        """Writes what is not saved yet."""
        if self.cache is not None and self.unsaved:
            places, values = (np.concatenate(parts) for parts in zip(*self.unsaved, strict=True))
            columns = [[column[place] for place in places] for column in (self.keys, self.prompt_ids, self.tokens)]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, CACHED)]
            self.cache.add(pa.Table.from_arrays([*arrays, pa.array(values)], schema=CACHED))
        self.unsaved = []
        self.saved_at = time.monotonic()

    def settled(self, values: np.ndarray) -> np.ndarray:
        """Saves the rest; the values as the next run will find them, which another run may have been first to write."""
        self.save()
        if self.cache is None:
            return values
        kept = self.cache.lookup(self.keys)
        return np.where(np.isnan(kept), values, kept)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Saves what there is when the work within ends early."""
        try:
            yield
        except BaseException:
            with suppress(MmpoError):
                self.save()
            raise


class ReferenceProgress:
    """A bar with rate and time left on a terminal, a plain line every few seconds elsewhere; never on standard output."""

    def __init__(self, completions: int, tokens: int) -> None:
        self.completions, self.tokens = completions, tokens
        self.done = self.tokens_done = 0
        self.started = self.said_at = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=tokens, desc="reference", file=sys.stderr, unit="tok", unit_scale=True)

    def advance(self, completions: int, tokens: int) -> None:
        """So many more are done."""
        self.done += completions
        self.tokens_done += tokens
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(tokens)
        elif now - self.said_at >= _LINE_SECONDS:
            self.said_at = now
            rate = self.tokens_done / (now - self.started)
            left = tqdm.format_interval((self.tokens - self.tokens_done) / rate)
            _say(f"{self.done}/{self.completions} completions  {rate:.0f} tokens/s  {left} left")

    def close(self) -> None:
        """Ends the bar, and says how long it took."""
        if self.bar is not None:
            self.bar.close()
        seconds = max(time.monotonic() - self.started, 1e-9)
        taken = tqdm.format_interval(seconds)
        _say(f"computed {self.done} of {self.completions} completions in {taken}, {self.tokens_done / seconds:.0f} tokens/s")


def _say(text: str) -> None:
    print(f"reference: {text}", file=sys.stderr, flush=True)
