"""FeedbackBuilder: how a source adds rows to the FEEDBACK table, one input row at a time, with every rule of the table kept.

A source only says what a row holds; ids, checks, counting and the columnar layout are done here once for all of them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from mmpo.pipeline.arrow import LARGE_FEEDBACK, lists, structs, with_texts
from mmpo.pipeline.contract import KINDS as KINDS
from mmpo.pipeline.contract import LARGEST as LARGEST
from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.messages import ReadMessage, Reply, read_content, read_message
from mmpo.pipeline.tables import MESSAGE_KEYS, REJECTS, REPAIR, completion_id, prompt_bytes

NOT_SAID = ("", "")
GRADER = ("rater", "kind", "aspect", "low", "high")
"""What many grades have in common; a comparison's limit is the high end."""


class FeedbackBuilder:
    """Collects FEEDBACK rows. `source` names where they come from; one builder serves one chunk of one file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.file: str | None = None
        self.row: int | None = None
        self.rejects: list[tuple[Any, ...]] = []
        self.limited_rows: set[int] = set()
        self.merged = 0
        self._messages: list[ReadMessage] = []
        self._completions: list[tuple[str | None, ...]] = []
        self._tools: list[str | None] = []
        self._ratings: list[tuple[Any, ...]] = []
        self._comparisons: list[tuple[Any, ...]] = []
        self._graders: dict[tuple[Any, ...], int] = {}
        self._extra: list[str | None] = []
        self._ids: list[str] = []
        self._starts: list[tuple[int, int, int, int]] = []
        self._seen: dict[str, int] = {}
        self._known: dict[str, str] = {}
        self._said: dict[str, dict[int, tuple[str, str]]] = {}
        self._prompt, self._texts = "", dict[int, tuple[str, str]]()
        self._noted: list[str] = []
        self._limited: list[str] = []
        self._mark = (0, 0, 0, 0, 0)

    def at(self, file: str, row: int) -> None:
        """Say which row of which file the next calls belong to; `row` counts from 1."""
        self.file = file
        self.row = row
        self._mark = (len(self._ids), len(self.rejects), len(self._limited), len(self._noted), self.merged)

    def rollback(self) -> None:
        """Undo everything that the current row added, its own partial rejects included."""
        rows, rejects, limited, noted, self.merged = self._mark
        if len(self._ids) > rows:
            own = (self._messages, self._completions, self._ratings, self._comparisons)
            if len(self._completions) > self._starts[rows][1]:  # a later row must not rely on a text that is gone
                self._said.clear()
            for added, size in zip(own, self._starts[rows], strict=True):
                del added[size:]
        for added in (self._ids, self._starts, self._extra, self._tools):
            del added[rows:]
        del self.rejects[rejects:], self._limited[limited:], self._noted[noted:]
        if self.row is not None:
            self.limited_rows.discard(self.row)

    def reject(
        self,
        reason: str,
        *,
        unit: str = "line",
        limited: bool = True,
        evidence: Mapping[str, Any] | None = None,
        row: int | None = None,
    ) -> None:
        """Count something of the current row as dropped, and keep the rest of the row. row: its number in the file, where the current row
        is made of several."""
        text = None if evidence is None else _evidence_json(evidence)
        self.rejects.append((unit, "source", reason, self.file, self.row if row is None else row, None, text))
        if limited and self.row is not None:
            self.limited_rows.add(self.row)
            self._limited.append(reason)

    def repair(self, reason: str, *, unit: str = "line", evidence: Mapping[str, Any] | None = None) -> None:
        """Count something of the current row as repaired and kept: it stands among the rejects, of the stage `repair`."""
        text = None if evidence is None else _evidence_json(evidence)
        self.rejects.append((unit, REPAIR, reason, self.file, self.row, None, text))

    def count(self, name: str) -> None:
        """Note something about the current row that drops nothing, such as a column that was left out; `noted` counts it by name."""
        self._noted.append(name)

    def drop(self, error: BadRow) -> None:
        """Take back the current row and count it as dropped for the error's reason; where that is no fault, but something in the row was
        one, for the first of those."""
        _, rejects, limited, *_ = self._mark
        faults = set(self._limited[limited:])
        found = [] if error.limited else [one for one in self.rejects[rejects:] if one[2] in faults]
        self.rollback()
        if found:
            _, _, reason, *_, evidence = found[0]
            self.reject(reason, evidence=None if evidence is None else orjson.loads(evidence))
        else:
            self.reject(error.reason, limited=error.limited, evidence=error.evidence)

    def prompt(self, messages: str | Sequence[Mapping[str, Any]], tools: str | None = None) -> int:
        """Start a FEEDBACK row for a prompt: a text (one user message) or a list of messages; the row's index. tools: as
        `messages.read_tools` gives them.

        Raises BadRow: empty_prompt, lone_surrogate, and those of `messages.read_message`.
        """
        if isinstance(messages, str):
            if tools is None and messages in self._known:  # as most are: a prompt has several rows
                return self._start(self._known[messages], [("user", messages)], None)
            pairs: list[ReadMessage] = [("user", messages)]
        elif isinstance(messages, Sequence):
            pairs = [read_message(message, self.count) for message in messages]
        else:
            raise BadRow("not_text", {"prompt": type(messages).__name__})
        if not any(content and not content.isspace() for _, content, *_ in pairs):
            raise BadRow("empty_prompt")
        if not self.source.isascii():
            _check_texts(source=self.source)
        try:
            raw = prompt_bytes([dict(zip(("role", "content", *MESSAGE_KEYS), one)) for one in pairs], tools)
        except (TypeError, UnicodeEncodeError) as error:
            raise BadRow("lone_surrogate", {"where": "prompt"}) from error
        identity = blake2b(raw, digest_size=16).hexdigest()
        if isinstance(messages, str) and tools is None:
            self._known[messages] = identity
        return self._start(identity, pairs, tools)

    def _start(self, identity: str, pairs: list[ReadMessage], tools: str | None) -> int:
        self._starts.append((len(self._messages), len(self._completions), len(self._ratings), len(self._comparisons)))
        self._ids.append(identity)
        self._extra.append(None)
        self._tools.append(tools)
        self._messages += pairs
        self._seen = {}
        self._prompt, self._texts = identity, self._said.setdefault(identity, {})
        return len(self._ids) - 1

    def completion(self, text: Any, model: str | None = None) -> int:
        """Add a candidate reply (a text, its parts, or a `messages.Reply`) to the current row; its index there. The same twice is one
        completion.

        Raises BadRow: empty_completion, not_text, lone_surrogate, and those of `messages.read_parts`.
        """
        keys: Sequence[str | None] = ()
        if not isinstance(text, str):
            reply = read_content(text)
            text, *keys = reply if isinstance(reply, Reply) else (reply,)
            if not isinstance(text, str):
                raise BadRow("not_text", {"completion": type(text).__name__})
            keys = [None if key is None or not key.strip() else key for key in keys]
            keys = keys if any(keys) else ()
        if (not text or text.isspace()) and not keys:
            raise BadRow("empty_completion")
        repeated = False
        try:
            if keys:
                digest = completion_id(self._prompt, text, *keys)
            else:  # the same without a call; and a text that many rows of a prompt have is looked up by its length, not by all of it
                before, digest = self._texts.get(len(text), NOT_SAID)
                if not (repeated := before == text):
                    digest = blake2b(f"{self._prompt}\0{text}".encode(), digest_size=16).hexdigest()
        except (TypeError, UnicodeEncodeError) as error:
            raise BadRow("lone_surrogate", {"where": "completion"}) from error
        if digest in self._seen:  # also calls that say the same
            self.merged += 1
            return self._seen[digest]
        model = model if model is None else str(model).strip()
        if model is not None and not model.isascii():
            _check_texts(model=model)
        if any(keys[:1]):
            self.count("thinking_apart")
        if not keys:
            self._texts.setdefault(len(text), (text, digest))
        index = self._seen[digest] = len(self._seen)
        said = None if repeated else text
        self._completions.append((digest, said, model, *keys) if keys else (digest, said, model))
        return index

    def ids_of(self, *completions: int) -> tuple[str, ...]:
        """The ids of the current row's prompt and of some of its completions."""
        begin = self._starts[-1][1]
        return (self._ids[-1], *(str(self._completions[begin + one][0]) for one in completions))

    def rating(
        self,
        completion: int,
        score: Any,
        *,
        rater: str,
        kind: str = "ai",
        aspect: str = "overall",
        low: float | None = None,
        high: float | None = None,
        spread: float | None = None,
        note: str | None = None,
    ) -> None:
        """Add one grade of a completion of the current row, on the scale low..high (None: unbounded).

        Raises BadRow: score_not_a_number (text, bool, NaN, infinite), score_too_large, score_out_of_scale, lone_surrogate.
        """
        value = as_number(score, "score")
        if (low is not None and value < low) or (high is not None and value > high):
            raise BadRow("score_out_of_scale", {"score": value, "low": low, "high": high})
        self._ratings.append((completion, self._grader((rater, kind, aspect, low, high), note), value, spread, note))

    def _grader(self, given: tuple[str, str, str, float | None, float | None], note: str | None) -> int:
        """A number for rater, kind, aspect and the ends of the scale. Raises BadRow lone_surrogate, also of the note."""
        if note is not None and not note.isascii():
            _check_texts(note=note)
        number = self._graders.get(given)
        if number is None:
            _check_texts(**dict(zip(GRADER[:3], given)))
            number = self._graders[given] = len(self._graders)
        return number

    def comparison(
        self,
        first: int,
        second: int,
        gap: Any,
        *,
        rater: str,
        kind: str = "human",
        aspect: str = "overall",
        limit: float | None = None,
        spread: float | None = None,
        note: str | None = None,
    ) -> None:
        """Add one graded comparison; `first` was shown first, gap > 0 says that it is better, |gap| <= limit.

        Raises BadRow: identical_texts, score_not_a_number, score_too_large, score_out_of_scale, lone_surrogate.
        """
        if first == second:
            raise BadRow("identical_texts", limited=False)
        value = as_number(gap, "gap")
        if limit is not None and abs(value) > limit:
            raise BadRow("score_out_of_scale", {"gap": value, "limit": limit})
        self._comparisons.append((first, second, self._grader((rater, kind, aspect, None, limit), note), value, spread, note))

    def extra(self, values: Mapping[str, Any]) -> None:
        """Keep what is not None of a JSON object beside the current row, with what is there already."""
        kept = {name: value for name, value in values.items() if value is not None}
        if kept:
            before = self._extra[-1]
            self._extra[-1] = _evidence_json({**orjson.loads(before), **kept} if before else kept)

    def row_extra(self, values: Mapping[str, Any]) -> None:
        """As `extra`, of every FEEDBACK row that the current input row has made."""
        first = self._mark[0]
        for place, before in enumerate(self._extra[first:], first):
            self._extra[place] = _evidence_json({**orjson.loads(before or "{}"), **values})

    @property
    def noted(self) -> Counter[str]:
        """How often what was noted about rows that were kept."""
        return Counter(self._noted)

    @property
    def limited(self) -> Counter[str]:
        """How often what was dropped that counts against `--max-rejects`, by reason."""
        return Counter(self._limited)

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts, completions and grades were added, and how many completions merged into an equal text."""
        return {
            "prompt": len(self._ids),
            "completion": len(self._completions),
            "grade": len(self._ratings) + len(self._comparisons),
            "merged": self.merged,
        }

    def finish(self, *, repeated: bool = True) -> pa.Table:
        """The rows as a FEEDBACK table whose text columns have 64-bit offsets (`arrow.LARGE_FEEDBACK`). repeated: whether every row has
        its completions' texts; else null stands where an earlier row of the prompt has the same, until `merge_prompts`."""
        starts = np.fromiter(chain.from_iterable(self._starts), np.int64).reshape(len(self._ids), 4)
        table = pa.Table.from_arrays(
            [
                pa.array(self._ids, pa.string()),
                lists(starts[:, 0], structs(_as_long(self._messages), _inner("prompt"))),
                lists(starts[:, 1], structs(_as_long(self._completions), _inner("completions"))),
                lists(starts[:, 2], self._grades("ratings", self._ratings, "completion", "score")),
                lists(starts[:, 3], self._grades("comparisons", self._comparisons, "first", "second", "gap")),
                pa.array([self.source] * len(self._ids), pa.string()),
                pa.array(self._extra, pa.large_string()),
                pa.array(self._tools, pa.large_string()),
            ],
            schema=LARGE_FEEDBACK,
        )
        return with_texts(table) if repeated else table

    def _grades(self, column: str, rows: Sequence[tuple[Any, ...]], *names: str) -> pa.StructArray:
        """The column's grades. names: what the rows hold beside grader, spread and note; the value comes last."""
        fields, graders = _inner(column).fields, zip(*self._graders, strict=True)
        *at, value = names
        own = dict(zip((*at, "grader", value, "spread", "note"), zip(*rows, strict=True)))
        number = pa.array(own.get("grader", ()), pa.int32())
        given = dict(zip(GRADER, graders))
        given["limit"] = given.get("high", ())
        arrays = [
            pa.array(own[one.name], one.type) if one.name in own
            else pa.array(given[one.name], one.type).take(number) if given.get(one.name)
            else pa.nulls(len(rows), one.type)
            for one in fields
        ]  # fmt: skip
        return pa.StructArray.from_arrays(arrays, fields=fields)

    def rejects_table(self) -> pa.Table:
        """What was dropped, as a REJECTS table."""
        columns = list(zip(*self.rejects, strict=True)) or [()] * len(REJECTS)
        return pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, REJECTS, strict=True)], schema=REJECTS
        )


def _inner(column: str) -> pa.StructType:
    return LARGE_FEEDBACK.field(column).type.value_type


def _as_long(rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """Tuples of one length, filled up with null."""
    lengths = set(map(len, rows))
    return rows if len(lengths) < 2 else [(*row, *(None,) * (max(lengths) - len(row))) for row in rows]


def _check_texts(**texts: str | None) -> None:
    """Raises BadRow lone_surrogate, naming the field, where a text holds half a character: no file of ours can store it."""
    for where, text in texts.items():
        if text is not None:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadRow("lone_surrogate", {"where": where}) from error


def as_number(value: Any, name: str) -> float:
    """A grade as a float. Raises BadRow: score_not_a_number, score_too_large."""
    if type(value) is float and -LARGEST <= value <= LARGEST:  # as nearly all are
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number, Decimal)):
        raise BadRow("score_not_a_number", {name: _short(value)})
    try:
        number = float(value)
    except OverflowError as error:
        raise BadRow("score_not_a_number", {name: "an integer too large for a double"}) from error
    if not math.isfinite(number):
        raise BadRow("score_not_a_number", {name: str(number)})
    if abs(number) > LARGEST:
        raise BadRow("score_too_large", {name: number, "largest": LARGEST})
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _evidence_json(values: Mapping[str, Any]) -> str:
    """JSON text of an object of any content; what JSON can't hold becomes its repr."""
    try:
        return orjson.dumps(dict(values), default=_short, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError:
        return orjson.dumps({str(key): ascii(value) for key, value in values.items()}).decode()
