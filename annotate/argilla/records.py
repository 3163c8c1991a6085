"""What a record of Argilla looks like: its id, fields, metadata and suggestions, and back from a record to the texts that it shows.

A record's id is a digest of the ids of its prompt and completions, in any order: pushing twice changes nothing, and whoever reads a
record can prove that its texts are those that were pushed. The order in which replies are shown is drawn once, by hash; afterwards
the fields of the record have it. Metadata is for filtering, out of sight of annotators, and nothing depends on it but models and
sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import copysign, erf, floor, inf, sqrt
from string import ascii_lowercase
from typing import Any

from mmpo.annotate.argilla.display import DISPLAYS, Display
from mmpo.annotate.pairings import digest_of
from mmpo.annotate.select import KnownMargin, RecordItem
from mmpo.pipeline.storage import text_digest
from mmpo.pipeline.tables import Message, as_text, completion_id, message_of, prompt_id, set_keys

LETTERS = ascii_lowercase[:10]
"""Replies of a record at most: Argilla's page shows no more side by side that anyone could compare."""
LONGEST_MESSAGE = 20_000
LONGEST_ROLE = 20
MOST_MESSAGES = 500
"""What Argilla's chat field takes."""


class NotOurs(Exception):
    """A record whose texts are not proved by its id; the argument is the reason."""

    @property
    def reason(self) -> str:
        """The reason, a word for the counts."""
        return str(self.args[0])


@dataclass(frozen=True)
class ShownRecord:
    """What a record shows. ids, texts, models: in the order shown, A first; display: how its texts are written down."""

    record: str
    prompt_id: str
    prompt: list[Message]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    models: tuple[str | None, ...]
    source: str | None
    display: str
    metadata_missing: bool
    carried: tuple[Mapping[str, str], ...] = ()
    tools: str | None = None


def record_id(questions: str, prompt: str, ids: Sequence[str]) -> str:
    """The id of a record: the question set and a digest of the ids, whatever their order.

    >>> record_id("pairs", "p", ["a", "b"]) == record_id("pairs", "p", ["b", "a"])
    True
    """
    return f"{questions}-{text_digest(chr(0).join([prompt, *sorted(ids)]))}"


def order_of(item: RecordItem, questions: str, seed: int) -> tuple[str, ...]:
    """The completions' ids in the order shown, by hash of the seed and the ids."""
    if questions == "ratings":
        return tuple(sorted(item.ids, key=lambda one: digest_of(seed, "shuffle", one)))
    a, b = sorted(item.ids)
    return (b, a) if digest_of(seed, "order", a, b)[0] % 2 else (a, b)


def fields_of(item: RecordItem, order: Sequence[str], display: str) -> dict[str, Any]:
    """The fields of a record, replies in the given order."""
    way = DISPLAYS[display]
    texts = dict(zip(item.ids, _said(item.texts, item.carried)))
    replies = {f"reply_{letter}": way.shown(texts[one]) for letter, one in zip(LETTERS, order)}
    return {"prompt": _chat(item.prompt, way), **replies}


def _said(texts: Sequence[str], carried: Sequence[Mapping[str, str]]) -> list[str]:
    """What replies say, their tool calls as text."""
    return [as_text({"content": text, **more}) for text, more in zip(texts, carried or [{}] * len(texts), strict=True)]


def _chat(prompt: Sequence[Message], way: Display) -> list[Message]:
    """The conversation as Argilla's chat field takes it: no empty message, none too long, roles of up to twenty characters."""
    return [
        {"role": message["role"][:LONGEST_ROLE] or "?", "content": piece}
        for message in prompt
        for piece in _pieces(as_text(message), way)
    ]


def _pieces(text: str, way: Display) -> list[str]:
    shown = way.shown(text)
    if len(shown) <= LONGEST_MESSAGE:
        return [shown] if shown else ["(empty)"]
    middle = len(text) // 2
    cut = text.rfind("\n", 1, middle) + 1 or middle
    return _pieces(text[:cut], way) + _pieces(text[cut:], way)


def _fits(prompt: Sequence[Message]) -> bool:
    """Whether the chat field alone says what the conversation was."""
    return all(0 < len(message["role"]) <= LONGEST_ROLE and message["content"] and len(message) == 2 for message in prompt)


def metadata_of(item: RecordItem, order: Sequence[str], display: str) -> dict[str, Any]:
    """The metadata of a record: the order shown; source, models and margins for filters. Null values are left out."""
    models = dict(zip(item.ids, item.models))
    values: dict[str, Any] = {"prompt_id": item.prompt_id, "ids": list(order), "display": display, "source": item.source}
    values |= {f"model_{letter}": models[one] for letter, one in zip(LETTERS, order)}
    known = item.margins.get(frozenset(order)) if len(order) == 2 else None
    if known is not None:
        values |= {"margin": float(known.toward(order[0])), "margin_se": known.se, "margin_raters": known.raters}
    way = DISPLAYS[display]
    chat = _chat(item.prompt, way)
    if not _fits(item.prompt) or len(chat) != len(item.prompt):
        values["prompt"] = [message_of(message) for message in item.prompt]
    values["tools"] = item.tools
    if any(item.carried):
        replies = dict(zip(item.ids, ({"content": text, **more} for text, more in zip(item.texts, item.carried, strict=True))))
        values["replies"] = [replies[one] for one in order]
    return {name: value for name, value in values.items() if value is not None}


def too_many_messages(item: RecordItem, display: str) -> bool:
    """Whether the conversation has more messages than Argilla's chat field takes."""
    return len(_chat(item.prompt, DISPLAYS[display])) > MOST_MESSAGES


def grade_of(share: float) -> int:
    """The grade from −3 to 3 nearest to a margin, given as a share of what is worth "much better"; halves go outward.

    >>> [grade_of(share) for share in (0.1, 0.5, -0.5, 2.0)]
    [0, 2, -2, 3]
    """
    size = min(3, floor(3 * min(abs(share), 1.0) + 0.5 + 1e-9))
    return int(copysign(size, share)) if size else 0


def certainty(share: float, se: float | None, grade: int) -> float | None:
    """The probability that a normal margin with this mean and standard error rounds to the grade; None where the error is unknown.

    share, se: as shares of what is worth "much better".

    >>> round(certainty(1 / 3, 1 / 6, 1), 3)  # a grade of 1 ± ½: one standard error on either side
    0.683
    """
    if se is None:
        return None
    low, high = -inf if grade == -3 else (grade - 0.5) / 3, inf if grade == 3 else (grade + 0.5) / 3
    if se == 0:
        return 1.0
    return min(1.0, max(0.0, _below((high - share) / se) - _below((low - share) / se)))


def _below(z: float) -> float:
    return 0.5 * (1 + erf(z / sqrt(2)))


def suggestion_of(known: KnownMargin, order: Sequence[str], full: float) -> tuple[str, float | None]:
    """A margin as a value of the seven grades, in the order shown, and its certainty. full: the margin worth "much better"."""
    # A measure too small for numbers to divide by means the same as a very small one.
    full = max(full, 1e-150 * max(abs(known.margin), known.se or 0.0))
    share = known.toward(order[0]) / full
    grade = grade_of(share)
    return str(grade), certainty(share, None if known.se is None else known.se / full, grade)


def read_record(record: Mapping[str, Any], display: str = "markdown") -> ShownRecord:
    """What a record of Argilla shows, proved by its id; display: what to try first where its metadata does not say.

    Raises NotOurs: "foreign_record" (an id that is not of ours), "record_edited" (texts that are not those that were pushed).
    """
    external = str(record.get("external_id") or "")
    questions, dash, _ = external.partition("-")
    fields, metadata = record.get("fields") or {}, record.get("metadata") or {}
    if not dash or questions not in ("pairs", "ratings") or not isinstance(fields, Mapping):
        raise NotOurs("foreign_record")
    replies = [fields[f"reply_{letter}"] for letter in LETTERS if fields.get(f"reply_{letter}") is not None]
    shown = fields.get("prompt")
    if not isinstance(shown, list) or not all(isinstance(text, str) for text in replies):
        raise NotOurs("record_edited")
    first = metadata.get("display", display)
    for name in sorted(DISPLAYS, key=lambda one: one != first):
        found = _proved(questions, external, shown, replies, metadata, name)
        if found is not None:
            return found
    raise NotOurs("record_edited")


def _proved(
    questions: str, external: str, shown: list[Any], replies: Sequence[str], metadata: Mapping[str, Any], display: str
) -> ShownRecord | None:
    """The record read in one way of display, None where its id says something else."""
    way = DISPLAYS[display]
    try:
        prompt = metadata.get("prompt") or [{"role": one["role"], "content": way.written(one["content"])} for one in shown]
        # A conversation that the field could not hold as it is stands in the metadata: the field must still show that one.
        if "prompt" in metadata and _chat(prompt, way) != [{"role": one["role"], "content": one["content"]} for one in shown]:
            return None
        tools, kept = metadata.get("tools"), metadata.get("replies")
        own = prompt_id(prompt, tools)
        texts = tuple(way.written(text) for text in replies) if kept is None else tuple(one["content"] for one in kept)
        carried = () if kept is None else tuple(set_keys(one) for one in kept)
        if kept is not None and [way.shown(text) for text in _said(texts, carried)] != list(replies):
            return None
        ids = tuple(completion_id(own, text, **more) for text, more in zip(texts, carried or [{}] * len(texts), strict=True))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if record_id(questions, own, ids) != external:
        return None
    models = tuple(_text(metadata.get(f"model_{letter}")) for letter in LETTERS[: len(ids)])
    return ShownRecord(
        external,
        own,
        prompt,
        ids,
        texts,
        models,
        _text(metadata.get("source")),
        display,
        "prompt_id" not in metadata,
        carried,
        tools,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
