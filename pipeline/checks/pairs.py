"""One pass over the parts of a PAIRS folder. Texts are read as dictionaries, so that each distinct one is looked at and hashed once."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import coded, offsets_of, ranges, row_sums, to_numpy
from mmpo.pipeline.checks.findings import Findings
from mmpo.pipeline.contract import KINDS, key_faults, null_faults
from mmpo.pipeline.margins import target_probability
from mmpo.pipeline.pairs.splits import SPLIT_RULES, check_shares, first_user_messages, split_of_positions
from mmpo.pipeline.tables import (
    MESSAGE_KEYS,
    PAIRS,
    REPLY_KEYS,
    SPLITS,
    TOOLS,
    completion_id,
    keys_of,
    prompt_id,
    user_prompt_id,
    with_keys,
)

SATURATED = 0.95
"""A target above this pulls like a certain label: the margin behind it no longer matters."""
Z_SCORES = 20.0
"""A width in standard deviations: of scores without a scale and without steps in the manifest."""


def look_at_pairs(found: Findings) -> None:
    """All rows of all splits, one row group after the other, and then what only all of them show."""
    seen = _Prompts(found)
    for number, split in enumerate(SPLITS):
        seen.last = None
        for path in found.parts(split):
            for batch in found.batches(split, path, PAIRS):
                if found.watch is not None:
                    found.watch(split, path, found.place[1], batch)
                _Batch(found, seen, batch, number).look()
    seen.close()


class _Prompts:
    """Every run of rows of one prompt: its id, its split's number, the texts that say where it belongs, as 64-bit digests.

    Some 40 bytes a prompt, so that memory stays flat. last: the prompt's id at the end of the last batch, with its pairs and scores.
    """

    def __init__(self, found: Findings) -> None:
        self.found = found
        self.ids, self.alike, self.place, self.side = (array("q") for _ in range(4))
        self.keys, self.right = array("Q"), array("B")
        self.names: list[str] = []
        self.last: tuple[str, np.ndarray, np.ndarray, np.ndarray] | None = None
        self.rule = found.recipe.get("split_by") or "first-message"

    def add(self, side: int, rows: list[int], ids: list[str], prompts: pa.Array, right: list[bool]) -> None:
        """Runs of a batch: their first rows (in the part, from 1), ids, messages, and whether these are what the id says."""
        part = self.found.place[0]
        if not ids:
            return
        if not self.names or self.names[-1] != part:
            self.names.append(part)
        begin = first_user_messages(prompts)
        # What a column held is not in PAIRS: then prompts are what may not cross.
        keys = begin if self.rule == "first-message" else ids
        digests = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in keys])
        self.keys.extend(np.frombuffer(digests, ">u8").tolist())
        self.ids.extend(map(hash, ids))
        self.alike.extend([hash(" ".join(words.casefold().split())) for words in begin])
        self.side.extend([side] * len(rows))
        self.right.extend(right)
        self.place.extend((len(self.names) - 1) << 40 | row for row in rows)

    def where(self, at: int) -> str:
        """The part and row of a run."""
        return f"{self.names[self.place[at] >> 40]}, row {self.place[at] & (1 << 40) - 1}"

    def close(self) -> None:
        """What only all prompts show: leaks, prompts on the wrong side, prompts whose rows do not stand together."""
        found, size = self.found, len(self.ids)
        found.figures["prompts"] = len(set(self.ids))
        found.figures["conversations"] = len(set(self.keys))
        if not size:
            return
        side = np.array(self.side)
        ids, keys, alike = (np.array(column) for column in (self.ids, self.keys, self.alike))
        right = np.array(self.right, dtype=bool)  # where a prompt is not that of its id, its text says nothing
        leaks = (_crossing(keys, side) | _crossing(ids, side)) & right
        self._fault("leakage", leaks, np.unique(keys[leaks]).size)
        near = _crossing(alike, side) & ~leaks & right
        self._fault("near leakage", near, np.unique(alike[near]).size)
        _, first, count = np.unique(ids * np.int64(4) + side, return_index=True, return_counts=True)  # of 64 bits 62 are enough
        again = np.ones(size, dtype=bool)
        again[first] = False
        self._fault("adjacent rows", again, int((count > 1).sum()))
        shares = found.recipe.get("split")
        if shares is None or self.rule not in SPLIT_RULES:
            rule = "names no shares" if shares is None else f"splits by {self.rule}, which the pairs do not show"
            found.unknown["split"] = f"not known: the manifest {rule}"
            return
        wrong = (split_of_positions(keys.astype(np.float64) / 2.0**64, check_shares(shares)) != side) & ~leaks & right
        self._fault("split", wrong, int(wrong.sum()))

    def _fault(self, rule: str, mask: np.ndarray, count: int) -> None:
        if mask.any():
            self.found.fault(rule, self.where(int(np.argmax(mask))), count)


def _right_ids(prompts: pa.Array, tools: Sequence[str | None], ids: Sequence[str]) -> list[bool]:
    """Whether each prompt is what its id is the digest of. Most are one user message, whose text is all that is looked at."""
    messages = prompts.flatten()
    plain = not any(tools) and not _carried(messages, MESSAGE_KEYS) and bool((np.diff(offsets_of(prompts)) == 1).all())
    if plain and pc.all(pc.equal(messages.field("role"), "user")).as_py():
        return [user_prompt_id(text) == one for text, one in zip(messages.field("content").to_pylist(), ids, strict=True)]
    return [prompt_id(rows, offer) == one for rows, offer, one in zip(prompts.to_pylist(), tools, ids, strict=True)]


def _crossing(values: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Which values stand on more than one side, shape (values,)."""
    _, group = np.unique(values, return_inverse=True)
    lowest, highest = np.full(group.max() + 1, 9), np.full(group.max() + 1, -1)
    np.minimum.at(lowest, group, side)
    np.maximum.at(highest, group, side)
    return (lowest < highest)[group]


def _bytes(texts: pa.Array) -> list[memoryview]:
    """The UTF-8 of each text, uncopied."""
    texts = texts.cast(pa.large_string()) if not pa.types.is_string(texts.type) else texts
    kind = np.int32 if pa.types.is_string(texts.type) else np.int64
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return [memoryview(b"")] * len(texts)
    at, whole = np.frombuffer(offsets, kind)[texts.offset : texts.offset + len(texts) + 1].tolist(), memoryview(data)
    return [whole[a:b] for a, b in zip(at, at[1:], strict=False)]


class _Batch:
    """Rows of one row group. `rows` are those that are looked at: without nulls, later also with one message a reply."""

    def __init__(self, found: Findings, seen: _Prompts, batch: pa.RecordBatch, side: int) -> None:
        self.found, self.seen, self.batch, self.side = found, seen, batch, side
        self.rows = np.arange(batch.num_rows)

    def look(self) -> None:
        """Every rule about rows."""
        bad = np.zeros(self.batch.num_rows, dtype=bool)
        for name in self.batch.schema.names:
            for _, words, mask in null_faults(self.batch.column(name), name):
                self.found.found("nulls", mask & ~bad, words)
                bad |= mask
        self._keep(~bad)
        for rule, words, mask in key_faults(self.batch):
            self._say(rule, mask, words)
        self._numbers()
        empty = np.diff(offsets_of(self.batch.column("prompt"))) == 0
        self._say("messages", empty, "a prompt without messages")
        self._keep(~empty)
        if len(self.rows):
            self._prompts()
        lengths = {side: np.diff(offsets_of(self.batch.column(side))) for side in ("chosen", "rejected")}
        single = (lengths["chosen"] == 1) & (lengths["rejected"] == 1)
        self._say("messages", ~single, "a reply that is not one message")
        self._keep(single)
        if len(self.rows):
            self._replies()

    def _keep(self, mask: np.ndarray) -> None:
        if not mask.all():
            self.rows, self.batch = self.rows[mask], self.batch.filter(pa.array(mask))

    def _say(self, rule: str, mask: np.ndarray, words: str = "") -> None:
        self.found.found(rule, mask, words, self.rows)

    def _column(self, name: str) -> np.ndarray:
        return to_numpy(self.batch.column(name))

    def _no_number(self, name: str, values: np.ndarray) -> np.ndarray:
        """Where a column holds infinity or NaN; a null, which `values` has as NaN too, is none: it says that there is no number."""
        return np.isinf(values) | (np.isnan(values) & np.asarray(self.batch.column(name).is_valid()))

    def _numbers(self) -> None:
        found, figures = self.found, self.found.figures
        margin, se, chosen, rejected = map(self._column, ("quality_margin", "margin_se", "score_chosen", "score_rejected"))
        votes, raters = self._column("preferring"), self._column("raters")
        self._say("margin sign", ~((margin >= 0) & (margin < np.inf)))
        self._say("standard errors", (se < 0) | self._no_number("margin_se", se))
        self._say("votes", (votes < 0) | (votes > raters))
        self._say("witnesses", raters == 0)
        self._largest(margin)
        kinds, names = coded(self.batch.column("kind"))
        self._say("kinds", ~np.array([name in (*KINDS, "mixed") for name in names.to_pylist()], dtype=bool)[kinds])
        for about, rows in self._by_source():
            self._scores(margin, chosen, rejected, about, rows)
            least = _number(about.get("min_margin"), 0.0) * _number(about.get("margin_times"), 1.0)
            out = (margin == 0) & (about.get("ties") == "drop") | (margin < least)
            self._say("left out", out & (margin >= 0) & rows, "a tie or a margin that the recipe drops")
        untied = margin > 0
        figures["ties"] += int((margin == 0).sum())
        figures["untied"] += int(untied.sum())
        figures["unsure"] += int(np.isnan(se).sum())
        if found.gamma is not None and untied.any():
            figures["saturated"] += int((target_probability(margin[untied], found.gamma) > SATURATED).sum())

    def _by_source(self) -> Iterator[tuple[Mapping[str, Any], np.ndarray]]:
        """What the manifest says of scores and of pairs left out, and a mask of the rows that it is of: of several sources for each."""
        found = self.found
        if not found.mixture:
            said = {key: found.manifest.get(key) for key in ("evidence", "score_range", "rounding_steps")}
            yield {**found.recipe, **said}, np.ones(len(self.rows), dtype=bool)
            return
        source, names = coded(self.batch.column("source"))
        known = [found.mixture.get(name) for name in names.to_pylist()]
        other = np.array([one is None for one in known], dtype=bool)[source]
        self._say("sources", other, "a source that the manifest does not name")
        for place, one in enumerate(known):
            if one is not None:
                found.pairs_of[names[place].as_py()] += int((source == place).sum())
                yield one, source == place

    def _largest(self, margin: np.ndarray) -> None:
        """The largest margins of two prompts: a build's examples, which the manifest keeps."""
        ids, names = coded(self.batch.column("prompt_id"))
        margin, found = np.where(np.isfinite(margin), margin, -1.0), self.found.largest
        for _ in range(min(2, len(names)) if len(margin) else 0):
            at = int(np.argmax(margin))
            one = names[int(ids[at])].as_py()
            found[one] = max(float(margin[at]), found.get(one, -1.0))
            margin = np.where(ids == ids[at], -1.0, margin)
        for one in sorted(found, key=lambda one: -found[one])[2:]:
            del found[one]

    def _scores(
        self, margin: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, about: Mapping[str, Any], rows: np.ndarray
    ) -> None:
        """Both scores or none, as the evidence says; their difference is the margin up to the rounding step; inside the scale. rows: a
        mask of those that are looked at."""
        evidence, bounds = about.get("evidence"), about.get("score_range")
        both = rows & np.isfinite(chosen) & np.isfinite(rejected)
        self.found.figures["scored"] += int(both.sum())
        broken = (np.isfinite(chosen) != np.isfinite(rejected)) | self._no_number("score_chosen", chosen)
        broken |= self._no_number("score_rejected", rejected)
        broken |= ~both if evidence == "ratings" else both if evidence == "comparisons" else False
        # A step is at most 1e-12 of the scale's width, or 1e-14 of the largest grade; without a scale the manifest has it.
        step = max(map(_number, (about.get("rounding_steps") or {}).values()), default=0.0) * _number(
            about.get("margin_times"), 1.0
        )
        width = bounds[1] - bounds[0] if bounds else 0.0 if step else Z_SCORES
        largest = np.maximum(np.abs(chosen), np.abs(rejected))
        broken |= both & np.isfinite(margin) & (np.abs(chosen - rejected - margin) > step + 1e-12 * width + 2e-14 * largest)
        self._say("scores", broken & rows)
        if bounds is not None:
            low, high = bounds[0] - 1e-9 * width, bounds[1] + 1e-9 * width
            values = [margin] if evidence == "comparisons" else [chosen, rejected]
            self._say(
                "score range", np.any([np.isfinite(value) & ((value < low) | (value > high)) for value in values], axis=0) & rows
            )

    def _prompts(self) -> None:
        """A prompt is what its id is the digest of, in every row of its run; runs are kept for `_Prompts`."""
        ids, names = coded(self.batch.column("prompt_id"))
        starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
        self.run = np.repeat(starts, np.diff(np.append(starts, len(ids))))
        prompts = self.batch.column("prompt")
        offsets = offsets_of(prompts)
        lengths, messages = np.diff(offsets), prompts.flatten()
        wrong = lengths != lengths[self.run]
        same = np.flatnonzero(~wrong & (self.run != np.arange(len(ids))))
        if len(same):
            number = _numbered([messages.field(name) for name in ("role", "content", *_carried(messages, MESSAGE_KEYS))])
            mine, first = (number[ranges(offsets[rows], lengths[same])] for rows in (same, self.run[same]))
            wrong[np.repeat(same, lengths[same])[mine != first]] = True
        tools = [None] * len(starts)
        if TOOLS in self.batch.schema.names:
            offered, texts = coded(self.batch.column(TOOLS))
            wrong |= offered != offered[self.run]
            tools = texts.take(pa.array(offered[starts], mask=offered[starts] < 0)).to_pylist()
        heads = prompts.take(pa.array(starts)).cast(with_keys(PAIRS, keys_of(self.batch.schema)).field("prompt").type)
        own = names.take(pa.array(ids[starts])).to_pylist()
        right = _right_ids(heads, tools, own)
        wrong[starts] |= ~np.array(right, dtype=bool)
        self._say("prompt ids", wrong)
        blank = row_sums(heads, pc.invert(_blank(heads.flatten().field("content")))) == 0
        self._say("empty texts", blank[np.searchsorted(starts, self.run)], "a prompt without text")
        last = self.seen.last
        self.continued = last is not None and own[0] == last[0]
        new = slice(1 if self.continued else 0, None)
        rows = (self.rows[starts] + self.found.place[1] + 1).tolist()
        self.seen.add(self.side, rows[new], own[new], heads[new], right[new])

    def _replies(self) -> None:
        """Both replies of all rows as one list of places: chosen ones, then rejected ones."""
        n, columns = len(self.rows), [self.batch.column(side).flatten() for side in ("chosen", "rejected")]
        for side in columns:
            role, roles = coded(side.field("role"))
            self._say(
                "messages",
                np.array([name != "assistant" for name in roles.to_pylist()], dtype=bool)[role],
                "a reply not by the assistant",
            )
        text, texts = self._texts([side.field("content") for side in columns])
        identity, names = self._both([self.batch.column(f"{side}_id") for side in ("chosen", "rejected")])
        prompt, prompts = coded(self.batch.column("prompt_id"))
        prompt = np.tile(prompt, 2)
        first = _first_of(identity, len(names))
        again = np.flatnonzero(text != text[first[identity]])
        if len(again):
            before = first[identity[again]]
            equal = np.asarray(pc.equal(*(texts.take(pa.array(text[at])) for at in (again, before))))
            text[again[equal]] = text[before[equal]]
        own, views, heads = names.to_pylist(), _bytes(texts), [name.encode() + b"\0" for name in prompts.to_pylist()]
        there = np.flatnonzero(first >= 0)
        right, places = np.zeros(len(names), dtype=bool), first[there]
        right[there] = [  # a digest takes a loop, as every one does
            blake2b(heads[of] + views[at], digest_size=16).hexdigest() == own[name]
            for name, of, at in zip(there.tolist(), prompt[places].tolist(), text[places].tolist(), strict=True)
        ]
        keys = {key: self._both([side.field(key) for side in columns]) for key in _carried(columns[0], REPLY_KEYS)}
        said = _joined([text, *(codes for codes, _ in keys.values())])
        keyed = np.any([codes[places] >= 0 for codes, _ in keys.values()], axis=0) if keys else np.zeros(len(there), dtype=bool)
        for name, place in zip(there[keyed].tolist(), places[keyed].tolist(), strict=True):
            told = {key: values[int(codes[place])].as_py() for key, (codes, values) in keys.items() if codes[place] >= 0}
            right[name] = completion_id(prompts[int(prompt[place])].as_py(), texts[int(text[place])].as_py(), **told) == own[name]
        wrong = ~right[identity] | (prompt != prompt[first[identity]]) | (said != said[first[identity]])
        self._say("completion ids", wrong[:n] | wrong[n:])
        blank = np.asarray(_blank(texts))[text]
        for codes, values in keys.values():
            blank = blank & np.append(np.asarray(_blank(values)), True)[codes]  # the last one where there is none, code -1
        self._say("empty texts", blank[:n] | blank[n:], "a reply without text")
        self._say("identical texts", said[:n] == said[n:])
        margin = self._column("quality_margin")
        ties = np.flatnonzero(margin == 0)
        if len(ties):
            order = np.array(own, dtype=object)
            mask = np.zeros(n, dtype=bool)
            mask[ties] = order[identity[:n][ties]] > order[identity[n:][ties]]
            self._say("order of ties", mask)
        length = np.asarray(pc.utf8_length(texts))[text]
        self.found.figures["longer"] += int(((length[:n] > length[n:]) & (margin > 0)).sum())
        self.found.figures["uneven"] += int(((length[:n] != length[n:]) & (margin > 0)).sum())
        numbers = np.fromiter(map(hash, own), dtype=np.int64, count=len(own))[identity]
        self._one_value(self._in_their_source(numbers), wrong)
        self._pairs(numbers)

    def _texts(self, columns: list[pa.Array]) -> tuple[np.ndarray, pa.Array]:
        """A number for the text in each place, and the texts. Of dictionaries, where few texts stand in many rows, equal texts have one
        number; else, since all would have to be hashed for that, each place has its own, and a pair of equal texts that of the first."""
        if all(pa.types.is_dictionary(one.type) for one in columns):
            numbers, texts = self._both(columns)
            return numbers.copy(), texts
        texts, n = pa.concat_arrays([one.cast(pa.large_string()) for one in columns]), len(columns[0])
        numbers = np.arange(len(texts))
        return np.where(np.append(np.zeros(n, dtype=bool), np.asarray(pc.equal(*columns))), numbers - n, numbers), texts

    def _both(self, columns: list[pa.Array]) -> tuple[np.ndarray, pa.Array]:
        return coded(pa.concat_arrays([one if pa.types.is_dictionary(one.type) else one.dictionary_encode() for one in columns]))

    def _in_their_source(self, identity: np.ndarray) -> np.ndarray:
        """Numbers of completions, (2·rows,), that differ where a completion stands in pairs of several sources that are mixed, each of
        which has scores of its own."""
        if not self.found.mixture:
            return identity
        source, names = coded(self.batch.column("source"))
        salt = np.array([hash(f"source {name}") for name in names.to_pylist()], dtype=np.int64)
        return identity ^ np.tile(salt[source], 2)

    def _one_value(self, identity: np.ndarray, wrong: np.ndarray) -> None:
        """A completion has one score and one model, wherever it stands. identity: a number a place, (2·rows,)."""
        score = np.concatenate([self._column("score_chosen"), self._column("score_rejected")])
        model, _ = self._both([self.batch.column("chosen_model"), self.batch.column("rejected_model")])
        before = self.seen.last if self.continued else None
        old = 0 if before is None else len(before[2])
        if before is not None:
            identity, score = np.concatenate([before[2], identity]), np.concatenate([before[3], score])
            wrong, model = np.append(np.zeros(old, dtype=bool), wrong), np.append(np.full(old, -2), model)
        right = np.flatnonzero(~wrong)
        _, first, group = np.unique(identity[right], return_index=True, return_inverse=True)
        first = right[first[group]]
        other = np.abs(score[right] - score[first]) > 0  # where both are known
        other |= (model[right] != model[first]) & (model[first] != -2)
        mask = np.zeros(len(identity), dtype=bool)
        mask[right[other]] = True
        mask, n = mask[old:], len(self.rows)
        self._say("one value", mask[:n] | mask[n:], "another score or model than in the completion's first pair")
        self._keys, self._score = identity[old:], score[old:]

    def _pairs(self, identity: np.ndarray) -> None:
        """No pair twice. A prompt's rows stand together, so that its own are enough; the last one's are kept for the next batch."""
        n = len(self.rows)
        low, high = np.minimum(identity[:n], identity[n:]), np.maximum(identity[:n], identity[n:])
        pair = low * np.int64(-7046029254386353131) + high  # a 64-bit mix of two digests
        before = self.seen.last if self.continued else None
        old = np.zeros(0, dtype=np.int64) if before is None else before[1]
        every = np.concatenate([old, pair])
        if len(np.unique(every)) < len(every):
            _, first = np.unique(every, return_index=True)
            again = np.ones(len(every), dtype=bool)
            again[first] = False
            self._say("duplicates", again[len(old) :])
        ids = self.batch.column("prompt_id")
        start = 0 if ids[0] == ids[n - 1] else int(np.flatnonzero(coded(ids)[0] != coded(ids)[0][-1])[-1]) + 1
        tail = np.concatenate([np.arange(start, n), np.arange(n + start, 2 * n)])
        whole = start == 0 and before is not None and self.continued
        keys, scores = self._keys[tail], self._score[tail]
        if whole and before is not None:
            keys, scores = np.concatenate([before[2], keys]), np.concatenate([before[3], scores])
        self.seen.last = (ids[n - 1].as_py(), np.concatenate([old, pair[start:]]) if whole else pair[start:], keys, scores)


def _blank(texts: pa.Array) -> pa.Array:
    return pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0))


def _carried(messages: pa.StructArray, keys: Sequence[str]) -> list[str]:
    """Those of the keys that there are fields for."""
    return [field.name for field in messages.type.fields if field.name in keys]


def _numbered(columns: Sequence[pa.Array]) -> np.ndarray:
    """One number for each row of several columns, equal where all of them are."""
    return _joined([coded(column)[0].astype(np.int64) for column in columns])


def _joined(codes: Sequence[np.ndarray]) -> np.ndarray:
    """One number for each place of several arrays of numbers from −1 up, equal where all of them are."""
    number = codes[0].astype(np.int64)
    for place, code in enumerate(codes[1:], 1):
        if place > 1:  # so that products stay small, whatever the number of arrays
            number = np.unique(number, return_inverse=True)[1].ravel()
        number = number * (int(code.max(initial=0)) + 2) + code + 1
    return number


def _first_of(numbers: np.ndarray, size: int) -> np.ndarray:
    """Where each number from 0 to size − 1 stands first, −1: nowhere."""
    first = np.full(size, -1, dtype=np.int64)
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]
    return first


def _number(value: object, otherwise: float = 0.0) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise
