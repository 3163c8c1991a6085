"""`mmpo argilla push`: pairs or prompts into a dataset of Argilla, for people to grade.

Where things stand is in Argilla alone: a record that is there is left as it is, so that the same command after any fault sends the
rest, and answers never change their meaning, because the order of replies on the server is kept whatever is drawn here.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpo.annotate.argilla.client import Client, Unreachable, connect, records_of, settings_of, upsert, workspace_of
from mmpo.annotate.argilla.dataset import (
    AskedQuestion,
    DatasetDesign,
    asked_of,
    display_of,
    ensure_dataset,
    guidelines_of,
    question_name,
)
from mmpo.annotate.argilla.display import printable
from mmpo.annotate.argilla.items import ItemsRead, RecordItem, read_items, select
from mmpo.annotate.argilla.known_margins import SuggestionMargins
from mmpo.annotate.argilla.options import PushOptions
from mmpo.annotate.argilla.records import (
    LETTERS,
    NotOurs,
    ShownRecord,
    fields_of,
    metadata_of,
    order_of,
    read_record,
    record_id,
    suggestion_of,
    too_many_messages,
)
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.progress import Progress

__all__ = ["push"]

LONGEST_NAME = 200
NO_AGENT = re.compile(r"[^A-Za-z0-9_:./\s-]")
"""What Argilla does not take in the name of a suggestion's agent."""


@dataclass
class _Counts:
    """sent: new records; updated: metadata or suggestions of records that were there; left_out: by reason."""

    done: int = 0
    sent: int = 0
    updated: int = 0
    unchanged: int = 0
    suggested: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


def push(
    data: str | Path,
    dataset: str,
    workspace: str | None = None,
    *,
    options: PushOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Push the pairs of a PAIRS folder, or pairs or prompts of a FEEDBACK folder, into a dataset; made where it is not there.

    The key comes from the environment variable ARGILLA_API_KEY. workspace: None takes the only one. Returns counts: "records"
    (chosen), "sent", "updated", "unchanged", "suggested", "left_out" by reason with "examples"; "finished" says whether nothing was
    left out.

    Raises UserError (wrong input, no such workspace, no server) and PartialResult (Argilla went away while records were sent: those
    that arrived are safe, and the same call sends the rest).
    """
    options = options or PushOptions()
    if not 0 < len(dataset) <= LONGEST_NAME:
        raise UserError(f"--dataset: a name of 1 to {LONGEST_NAME} characters is needed, not {printable(dataset)!r}")
    with connect(options.api_url) as client:
        space = workspace_of(client, workspace)
        read = read_items(
            data, questions=options.questions, pairs=options.pairs, aspects=options.aspects, judge=options.judge,
            suggest=options.suggest, select=options.select, seed=options.seed,
        )  # fmt: skip
        every = list(_once(read, options.questions))
        items = select(every, options.select, options.limit, options.seed)
        _check_hints(read.hints, options)
        design = _design(every, options)
        guidelines = guidelines_of(design, options.guidelines, suggest=options.suggest)
        counts, started = _Counts(left_out=read.dropped), time.monotonic()
        try:
            target, new = ensure_dataset(
                client, space, dataset, design, guidelines, options.raters, own=options.guidelines is not None
            )
            _send_all(client, target["id"], items, read.hints, options, counts, new, progress)
        except Unreachable as error:
            raise PartialResult(
                f"{error}. {counts.done:,} of {len(items):,} records are safe in {printable(dataset)!r}; the same command again sends "
                "the rest"
            ) from None
    return {
        "dataset": dataset, "workspace": space["name"], "dataset_id": target["id"], "new": new,
        "url": f"{client.url}/dataset/{target['id']}/annotation-mode", "questions": options.questions, "records": len(items),
        "sent": counts.sent, "updated": counts.updated, "unchanged": counts.unchanged, "suggested": counts.suggested,
        "left_out": dict(counts.left_out), "examples": counts.examples, "seconds": time.monotonic() - started,
        "finished": not counts.left_out,
    }  # fmt: skip


def _once(read: ItemsRead, questions: str) -> Iterator[RecordItem]:
    """Each record once: pairs that several rows have are one."""
    seen: set[str] = set()
    for item in read.items:
        own = record_id(questions, item.prompt_id, item.ids)
        if own not in seen:
            seen.add(own)
            yield item


def _design(items: Sequence[RecordItem], options: PushOptions) -> DatasetDesign:
    """What to ask, by all that may ever be pushed of the folder; only two replies must be there, so that smaller prompts fit
    later."""
    sizes = [len(item.ids) for item in items]
    most, least = (2, 2) if options.questions == "pairs" else (max(sizes), min(2, *sizes))
    low, high = options.scale
    return DatasetDesign(options.questions, options.aspects, most, least, (low, high), options.rationale, options.display)


def _check_hints(hints: Mapping[str, SuggestionMargins], options: PushOptions) -> None:
    for aspect, one in hints.items():
        if options.questions == "ratings" and not one.scores:
            raise UserError(
                f"--suggest ({aspect}): --questions ratings needs AI ratings on a scale, and here there are none (comparisons give none); "
                "run `mmpo judge --mode pointwise` first, or leave it out"
            )
        if options.questions == "pairs" and one.much_better(options.much_better) is None:
            known = "several scales meet" if options.much_better is not None else "the margins have no end of their scale"
            raise UserError(
                f"--suggest ({aspect}): {known}, so nothing says what 'much better' is worth; give --much-better in the margins' units, "
                "or build the pairs with --normalise minmax"
            )


def _send_all(
    client: Client,
    dataset: str,
    items: Sequence[RecordItem],
    hints: Mapping[str, SuggestionMargins],
    options: PushOptions,
    counts: _Counts,
    new: bool,
    progress: Progress | None,
) -> None:
    settings = settings_of(client, dataset)
    asked, display = asked_of(settings), display_of(settings)
    replies = sum(one["name"].startswith("reply_") for one in settings["fields"])
    include = ["suggestions"] if hints else []
    there = {} if new else {one["external_id"]: one for one in records_of(client, dataset, include, progress)}
    waiting: dict[str, str] = {}

    def records() -> Iterator[dict[str, Any]]:
        for item in items:
            reason, record, update = _record(item, there, asked, hints, options, display, replies)
            if record is not None:
                waiting[record["external_id"]] = "updated" if update else "sent"
                counts.suggested += bool(record.get("suggestions"))
                yield record
                continue
            counts.done += not reason
            counts.unchanged += not reason
            if reason:
                counts.left_out[reason] += 1

    for _, refused in upsert(client, dataset, records()):
        for record, detail in refused:
            counts.left_out["refused_by_argilla"] += 1
            counts.examples.setdefault("refused_by_argilla", detail)
            waiting.pop(record["external_id"], None)
        _settle(waiting, counts, items, progress)
    if progress is not None:
        progress("pushing", len(items), len(items))


def _settle(waiting: dict[str, str], counts: _Counts, items: Sequence[RecordItem], progress: Progress | None) -> None:
    """Count a batch that Argilla has."""
    found = Counter(waiting.values())
    counts.sent += found["sent"]
    counts.updated += found["updated"]
    counts.done += len(waiting)
    waiting.clear()
    if progress is not None:
        progress("pushing", counts.done, len(items))


def _record(
    item: RecordItem,
    there: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, AskedQuestion],
    hints: Mapping[str, SuggestionMargins],
    options: PushOptions,
    display: str,
    replies: int,
) -> tuple[str, dict[str, Any] | None, bool]:
    """Why it can't be sent or "", the record to send, and whether it updates one; ("", None, False): Argilla has it as it is."""
    own = record_id(options.questions, item.prompt_id, item.ids)
    old = there.get(own)
    if old is None:
        if len(item.ids) > replies:
            return "too_many_completions", None, False
        if too_many_messages(item, display):
            return "too_many_messages", None, False
        order = order_of(item, options.questions, options.seed)
        record = {"external_id": own, "fields": fields_of(item, order, display), "metadata": metadata_of(item, order, display)}
        suggestions = _suggestions(item, order, asked, hints, options)
        return "", {**record, "suggestions": suggestions} if suggestions else record, False
    try:
        found: ShownRecord = read_record(old, display)
    except NotOurs:
        return "edited_in_argilla", None, False
    metadata = {**(old.get("metadata") or {}), **metadata_of(item, found.ids, found.display)}
    suggestions = _suggestions(item, found.ids, asked, hints, options)
    have = {one["question_id"]: (one["value"], one["score"], one["agent"]) for one in old.get("suggestions") or ()}
    fresh = [one for one in suggestions if have.get(one["question_id"]) != (one["value"], one["score"], one["agent"])]
    if metadata == (old.get("metadata") or {}) and not fresh:
        return "", None, False
    return "", {"external_id": own, "metadata": metadata, **({"suggestions": fresh} if fresh else {})}, True


def _suggestions(
    item: RecordItem,
    order: Sequence[str],
    asked: Mapping[str, AskedQuestion],
    hints: Mapping[str, SuggestionMargins],
    options: PushOptions,
) -> list[dict[str, Any]]:
    """AI margins and ratings as suggestions, in the order shown."""
    found = []
    for aspect, one in hints.items():
        agent = NO_AGENT.sub("-", one.agent).strip()[:200]
        agent = agent if re.search("[A-Za-z0-9]", agent) else "ai"
        if options.questions == "pairs":
            question, known = asked.get(question_name(aspect)), one.margins.get((item.prompt_id, frozenset(order)))
            full = one.much_better(options.much_better)
            if question is not None and known is not None and full:
                value, score = suggestion_of(known, order, full)
                found.append({"question_id": question.id, "value": value, "score": score, "agent": agent, "type": "model"})
            continue
        for letter, completion in zip(LETTERS, order):
            question, graded = asked.get(question_name(aspect, letter)), one.scores.get((item.prompt_id, completion))
            if question is not None and graded is not None:
                value = int(question.low + graded[0] * (question.high - question.low) + 0.5)
                found.append({"question_id": question.id, "value": value, "score": None, "agent": agent, "type": "model"})
    return found
