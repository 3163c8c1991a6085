"""FEEDBACK read in small batches, as rows for a judge: a million prompts never sit in memory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.annotate.pairings import digest_of
from mmpo.pipeline.arrow import flat
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import batches, manifest_of, on_disk, split_files
from mmpo.pipeline.tables import FEEDBACK, TOOLS, Message, as_text, keys_of, message_of, set_keys

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class FeedbackRow:
    """One prompt to be judged. scores: the mean grade that a completion already has, None where it has none; carried: what of REPLY_KEYS
    each completion has beside its text, () where none has any; tools: as FEEDBACK has them."""

    prompt_id: str
    prompt: Sequence[Message]
    ids: Sequence[str]
    texts: Sequence[str]
    scores: Sequence[float | None]
    reference: str = ""
    models: Sequence[str | None] = ()
    source: str | None = None
    carried: Sequence[Mapping[str, str]] = ()
    tools: str | None = None

    def said(self, place: int) -> str:
        """What a completion says, its tool calls as text; what it thought apart is no part of it."""
        return as_text({"content": self.texts[place], **self.carried[place]}) if self.carried else self.texts[place]


@dataclass(frozen=True)
class Feedback:
    """A FEEDBACK folder. `drawn`: the prompts of a pilot, None for all of them."""

    folder: Path
    files: Sequence[Path]
    drawn: frozenset[str] | None = None

    @classmethod
    def open(cls, folder: str | Path, limit: int | None = None, seed: int = 0) -> "Feedback":
        """The folder, after one reading of all of it, so that nobody pays for answers about rows that can't be used; with `limit`, so many
        prompts drawn by hash. Raises UserError."""
        path = on_disk(folder)
        manifest_of(path, "feedback")
        files = split_files(path, "feedback")
        if not files:
            raise UserError(f"{path} holds no prompts")
        ids = [value for batch in batches(files, None, 4_096, FEEDBACK) for value in (batch.column(0).to_pylist() if limit else ())]
        if limit is None:
            return cls(path, files)
        return cls(path, files, frozenset(sorted(ids, key=lambda one: digest_of(seed, "limit", one))[:limit]))

    def tables(self, rows: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
        """All rows, at most so many at a time. Raises UserError where a file can't be read or has other columns."""
        for batch in batches(self.files, None, rows, FEEDBACK):
            yield pa.Table.from_batches([batch])

    def rows(self, at_once: int = ROWS_AT_ONCE, *, scores: bool, reference: str | None) -> Iterator[list["FeedbackRow"]]:
        """The prompts that are to be judged, some at a time; scores, reference as for `rows_of`."""
        for table in self.tables(at_once):
            yield [row for row in rows_of(table, scores=scores, reference=reference) if self.wanted(row.prompt_id)]

    def check_reference(self, key: str) -> None:
        """Raise UserError where no prompt has a reference answer under that key, naming the keys that there are."""
        seen: dict[str, None] = {}
        for batch in batches(self.files, ["extra"], 4_096, FEEDBACK):
            for extra in batch.column(0).to_pylist():
                if _reference(extra, key):
                    return
                seen |= dict.fromkeys(_read(extra))
        known = ", ".join(list(seen)[:10]) or "none"
        raise UserError(f"--reference {key}: no prompt has a text of that name in `extra`. Keys there: {known}")

    def wanted(self, prompt_id: str) -> bool:
        """Whether a prompt is to be judged."""
        return self.drawn is None or prompt_id in self.drawn

    def sizes(self) -> np.ndarray:
        """Completions of each prompt that is to be judged, shape (prompts,)."""
        found = []
        for batch in batches(self.files, ["prompt_id", "completions.list.element.id"], 16_384, FEEDBACK):  # no texts
            lengths = np.asarray(batch.column("completions").value_lengths().fill_null(0)).astype(np.int64)
            if self.drawn is not None:
                lengths = lengths[np.array([one in self.drawn for one in batch.column("prompt_id").to_pylist()], dtype=bool)]
            found.append(lengths)
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def rows_of(table: pa.Table, *, scores: bool, reference: str | None) -> Iterator[FeedbackRow]:
    """The rows of a FEEDBACK table. scores: work out the mean grade of each completion (each on its scale, where it has one).

    reference: the key of `extra` with the reference answer.
    """
    completions = table["completions"].to_pylist()
    prompts = table["prompt"].to_pylist()
    ids = flat(table["prompt_id"]).to_pylist()
    ratings = table["ratings"].to_pylist() if scores else [None] * len(ids)
    extras = table["extra"].to_pylist() if reference else [None] * len(ids)
    sources = table["source"].to_pylist()
    keyed, offered = bool(keys_of(table.schema)), [None] * len(ids)
    if TOOLS in table.column_names:
        offered = table[TOOLS].to_pylist()
    for one, prompt, candidates, grades, extra, source, tools in zip(ids, prompts, completions, ratings, extras, sources, offered):
        candidates = candidates or []
        carried = [set_keys(candidate) for candidate in candidates] if keyed else []
        yield FeedbackRow(
            one,
            list(map(message_of, prompt)) if keyed else prompt,
            [candidate["id"] for candidate in candidates],
            [candidate["text"] for candidate in candidates],
            _means(grades, len(candidates)),
            _reference(extra, reference),
            [candidate["model"] for candidate in candidates],
            source,
            carried if any(carried) else (),
            tools,
        )


def share_of_scale(rating: Mapping[str, Any]) -> float | None:
    """A rating's score as a share of its declared scale, 0 to 1 within it; None where no scale is declared."""
    low, high = rating["low"], rating["high"]
    return (rating["score"] - low) / (high - low) if low is not None and high is not None and high > low else None


def _means(ratings: Sequence[Mapping[str, Any]] | None, size: int) -> list[float | None]:
    # One row at a time, whatever the raters: a build's means over flat grades are for whole batches (mmpo.pipeline.grades).
    found: list[list[float]] = [[] for _ in range(size)]
    for rating in ratings or ():
        share = share_of_scale(rating)
        found[rating["completion"]].append(rating["score"] if share is None else share)
    return [sum(values) / len(values) if values else None for values in found]


def _read(extra: str | None) -> dict[str, Any]:
    try:
        value = json.loads(extra or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _reference(extra: str | None, key: str | None) -> str:
    """The reference answer of a row: a text, or the first of a list of texts; "" where there is none."""
    value = _read(extra).get(key) if key is not None else None
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else ""
