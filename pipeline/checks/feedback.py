"""One pass over the parts of a FEEDBACK folder: ids, texts, and every grade."""

import json
from collections import Counter
from itertools import chain

import numpy as np
import pyarrow as pa

from mmpo.pipeline.checks.findings import Findings
from mmpo.pipeline.contract import feedback_faults, key_faults, null_faults
from mmpo.pipeline.tables import FEEDBACK, REPLY_KEYS, TOOLS, completion_id, keys_of, prompt_id, with_keys


def look_at_feedback(found: Findings) -> None:
    """All rows; one row per prompt, so that ids are all that is kept, as 64-bit digests."""
    seen: set[int] = set()
    for path in found.parts("feedback"):
        for batch in found.batches("feedback", path, FEEDBACK):
            _look(found, _whole(batch), seen)
    found.figures["prompts"] = len(seen)


def _whole(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch]).cast(with_keys(FEEDBACK, keys_of(batch.schema)))


def _look(found: Findings, table: pa.Table, seen: set[int]) -> None:
    bad = np.zeros(table.num_rows, dtype=bool)
    for name in table.column_names:
        for _, words, mask in null_faults(table[name].combine_chunks(), name):
            found.found("nulls", mask & ~bad, words)
            bad |= mask
    rows, table = np.flatnonzero(~bad), table.filter(pa.array(~bad)).combine_chunks()
    for rule, words, mask in chain(feedback_faults(table), key_faults(table)):
        found.found(rule, mask, words, rows)
    found.figures += _ends(table)
    broken: dict[str, list[bool]] = {
        rule: [] for rule in ("prompt ids", "messages", "empty texts", "completion ids", "duplicates", "extra")
    }
    names = ("prompt_id", "prompt", "completions", "extra")
    tools = table[TOOLS].to_pylist() if TOOLS in table.column_names else [None] * table.num_rows
    # Ids are digests and prompts differ from row to row: a loop, as every digest takes one.
    for identity, prompt, replies, extra, offered in zip(*(table[name].to_pylist() for name in names), tools, strict=True):
        broken["messages"].append(not prompt)
        broken["prompt ids"].append(bool(prompt) and prompt_id(prompt, offered) != identity)
        blank = bool(prompt) and not any(message["content"].strip() for message in prompt)
        said = [(reply["text"], *(reply.get(key) for key in REPLY_KEYS)) for reply in replies]
        broken["empty texts"].append(
            blank or any(not (text + (thought or "")).strip() and calls is None for text, thought, calls in said)
        )
        ids = [completion_id(identity, *one) for one in said]
        broken["completion ids"].append(any(own != reply["id"] for own, reply in zip(ids, replies)))
        twice = max(Counter(ids).values(), default=1) > 1
        broken["duplicates"].append(twice or hash(identity) in seen)
        broken["extra"].append(extra is not None and not _is_object(extra))
        seen.add(hash(identity))
    for rule, mask in broken.items():
        found.found(rule, np.array(mask, dtype=bool), rows=rows)


def _ends(table: pa.Table) -> Counter[str]:
    """Of the grades that have a scale: how many there are, and how many stand at an end of it."""
    counts: Counter[str] = Counter()
    for name, value, bounds in (("ratings", "score", ("low", "high")), ("comparisons", "gap", ("limit",))):
        grades = table[name].combine_chunks().flatten()
        score, *ends = (grades.field(one).to_numpy(zero_copy_only=False) for one in (value, *bounds))
        scaled = ~np.any(np.isnan(ends), axis=0)
        at_end = [np.abs(score) == end if name == "comparisons" else score == end for end in ends]
        counts.update(grades_with_scale=int(scaled.sum()), at_ends=int(np.any(at_end, axis=0).sum()))
    return counts


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
