"""The answers in replies: a text without its thinking and the white space around it, so that replies of one answer are found."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import codes, flat, lists, offsets_of, parents, with_fields, with_texts
from mmpo.pipeline.tables import REPLY_KEYS, completion_id, said_calls
from mmpo.pipeline.thinking import holds_thinking, without_thinking

DIFFERS = ("thinking", "white space")
"""What two replies of one answer may differ in, beside tool calls; the first where both differ."""
_SPACES = np.zeros(256, dtype=bool)
_SPACES[[*range(9, 14), *range(28, 33), *range(128, 256)]] = True  # or the beginning or end of a letter that may be a space
_OPENS = _SPACES.copy()
_OPENS[[*b"/tTrR"]] = True  # what may follow the < of a tag of thinking


class Answers:
    """The answers of a batch's completions. `plain` are those that stand in their text as they are: they are no texts of Python yet."""

    def __init__(self, feedback: pa.Table) -> None:
        self.rows = flat(feedback["completions"]).flatten()
        texts = self.rows.field("text")
        self.keyed = np.zeros(len(texts), dtype=bool)
        for key in REPLY_KEYS:
            if self.rows.field(key).null_count < len(texts):
                self.keyed |= np.asarray(self.rows.field(key).is_valid())
        tags, edges = _tags_and_edges(texts)
        at = pa.array(np.flatnonzero(edges))
        edges[np.asarray(at)] = _trimmed(texts.take(at))
        self.thinking = self._thinking(texts, tags)
        self.plain = ~(self.thinking | edges | self.keyed)
        self._known: dict[int, tuple[str, str | None]] = {}

    def _thinking(self, texts: pa.Array, tags: np.ndarray) -> np.ndarray:
        """Which completions think, in their text or apart from it."""
        found = np.zeros(len(texts), dtype=bool)
        if tags.any():
            at = np.flatnonzero(tags)
            found[at] = [holds_thinking(text) for text in texts.take(pa.array(at)).to_pylist()]
        apart = self.rows.field("reasoning_content")
        if apart.null_count == len(texts):
            return found
        return found | np.asarray(pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(apart), ""), False))

    def of(self, place: int) -> tuple[str, str | None]:
        """The answer of a completion: its text, "" where it is all thinking, and what its tool calls say."""
        if place not in self._known:
            text = self.rows.field("text")[place].as_py()
            if self.thinking[place]:
                text = without_thinking(text) or ""
            calls = self.rows.field("tool_calls")[place].as_py()
            self._known[place] = (text.strip(), None if calls is None else said_calls(calls))
        return self._known[place]

    def missing(self) -> np.ndarray:
        """Which completions are thinking without an answer, shape (completions,)."""
        none = np.zeros(len(self.rows), dtype=bool)
        for place in np.flatnonzero(self.thinking).tolist():
            none[place] = not any(self.of(place))
        return none

    def same(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """In what pairs of completions of one answer differ: 1 + the place in DIFFERS; 0 for those of two answers; shape (pairs,)."""
        found = np.zeros(len(first), dtype=np.int64)
        pairs = np.flatnonzero(~(self.plain[first] & self.plain[second]))
        # Equal answers have equal lengths, which few pairs have: only their texts are read.
        lengths = np.array(pc.binary_length(self.rows.field("text")))
        for place in np.unique([first[pairs], second[pairs]]).tolist() if len(pairs) else ():
            if not self.plain[place]:
                lengths[place] = len(self.of(place)[0].encode())
        pairs = pairs[lengths[first[pairs]] == lengths[second[pairs]]]
        if len(pairs):
            places = np.unique(np.concatenate([first[pairs], second[pairs]]))
            known: dict[tuple[str, str | None], int] = {}
            codes = np.array([known.setdefault(self.of(place), len(known)) for place in places.tolist()])
            equal = codes[np.searchsorted(places, first[pairs])] == codes[np.searchsorted(places, second[pairs])]
            thinking = self.thinking[first[pairs]] | self.thinking[second[pairs]]
            found[pairs] = np.where(equal, np.where(thinking, 1, 2), 0)
        return found


def drop_thinking(feedback: pa.Table) -> tuple[pa.Table, int]:
    """FEEDBACK with 64-bit text offsets whose replies are their answers, under ids of their own; of a reply that is all thinking nothing
    changes. Rows may then hold a completion twice, which `merge_prompts` makes one; comparisons of two such are gone: how many."""
    feedback = with_texts(feedback)
    answers = Answers(feedback)
    places = np.flatnonzero(answers.thinking & ~answers.missing())
    if not len(places):
        return feedback, 0
    column = flat(feedback["completions"])
    prompts = flat(feedback["prompt_id"]).take(pa.array(parents(offsets_of(column))[places])).to_pylist()
    calls = answers.rows.field("tool_calls").take(pa.array(places)).to_pylist()
    texts = [without_thinking(text) or "" for text in answers.rows.field("text").take(pa.array(places)).to_pylist()]
    ids = [completion_id(*one) for one in zip(prompts, texts, [None] * len(texts), calls, strict=True)]
    none = np.zeros(len(answers.rows), dtype=bool)
    none[places] = True
    new = {"id": _replaced(answers.rows.field("id"), none, ids), "text": _replaced(answers.rows.field("text"), none, texts)}
    thought = answers.rows.field("reasoning_content")
    new["reasoning_content"] = pc.if_else(pa.array(none), pa.scalar(None, thought.type), thought)
    changed = lists(offsets_of(column)[:-1], with_fields(answers.rows, new))
    place = feedback.schema.get_field_index("completions")
    feedback = feedback.set_column(place, feedback.schema.field("completions"), changed)
    compared = flat(feedback["comparisons"])
    rows, gaps, (identity, _) = parents(offsets_of(compared)), compared.flatten(), codes(new["id"])
    first, second = (identity[offsets_of(column)[rows] + np.asarray(gaps.field(name))] for name in ("first", "second"))
    kept = first != second
    if kept.all():
        return feedback, 0
    left = lists(np.searchsorted(rows[kept], np.arange(feedback.num_rows)), gaps.filter(pa.array(kept)))
    return feedback.set_column(feedback.schema.get_field_index("comparisons"), feedback.schema.field("comparisons"), left), int(
        (~kept).sum()
    )


def _replaced(column: pa.Array, mask: np.ndarray, values: Sequence[str]) -> pa.Array:
    return pc.replace_with_mask(column, pa.array(mask), pa.array(values, column.type))


def _trimmed(texts: pa.Array) -> np.ndarray:
    """Which texts have white space at an end."""
    return np.asarray(pc.not_equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), pc.binary_length(texts)))


def _tags_and_edges(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Which texts hold a character that opens a tag, and which may have white space at an end; by their bytes, as most have neither."""
    tags, edges = (np.zeros(len(texts), dtype=bool) for _ in range(2))
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return tags, edges
    at = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    raw = np.frombuffer(data, np.uint8)[: at[-1]]
    found = _places_of(ord("<"), raw[at[0] :]) + at[0]
    found = found[_OPENS[raw[np.minimum(found + 1, len(raw) - 1)]]]  # code and HTML are full of other tags
    # ◁ is three bytes, of which the second is rare
    rare = _places_of(0x97, raw[at[0] :]) + at[0]
    found = np.concatenate([found, rare[(rare > 0) & (raw[np.maximum(rare, 1) - 1] == 0xE2)]])
    tags[np.unique(np.searchsorted(at, found, side="right") - 1)] = True
    filled = np.flatnonzero(np.diff(at))
    edges[filled] = _SPACES[raw[at[filled]]] | _SPACES[raw[at[filled + 1] - 1]]
    return tags, edges


def _places_of(byte: int, raw: np.ndarray) -> np.ndarray:
    """Where a byte that is seldom stands; eight are looked at together.

    >>> _places_of(60, np.frombuffer(b"0123456<8 <0", np.uint8)).tolist()
    [7, 10]
    """
    hits = raw == byte
    whole = len(hits) // 8 * 8
    near = (np.flatnonzero(hits[:whole].view(np.uint64))[:, None] * 8 + np.arange(8)).reshape(-1)
    near = np.append(near, np.arange(whole, len(hits)))
    return near[hits[near]]
