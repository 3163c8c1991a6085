"""`mmpo argilla push`: pairs or prompts into a dataset of Argilla, for people to grade.

Where things stand is in Argilla alone: a record that is there is left as it is, so that the same command after any fault sends the
rest, and answers never change their meaning, because the order of replies on the server is kept whatever is drawn here.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from mmpo.annotate.argilla.items import read_items, select
from mmpo.annotate.argilla.options import PushOptions
from mmpo.annotate.argilla.records import (
    LETTERS,
    NotOurs,
    fields_of,
    metadata_of,
    order_of,
    read_record,
    record_id,
    suggestion_of,
    too_many_messages,
)
from mmpo.annotate.argilla.suggestions import SuggestionMargins
from mmpo.annotate.select import Featurize, RecordItem
from mmpo.pipeline.errors import PartialResult, UserError, printable
from mmpo.pipeline.progress import Progress

LONGEST_NAME = 200
NO_AGENT = re.compile(r"[^A-Za-z0-9_:./\s-]")
"""What Argilla does not take in the name of a suggestion's agent."""
LONGEST_AGENT = 200


@dataclass
class _Counts:
    """sent: new records; updated: metadata or suggestions of records that were there; left_out: by reason."""

    sent: int = 0
    updated: int = 0
    unchanged: int = 0
    suggested: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Records that Argilla has as they are here."""
        return self.sent + self.updated + self.unchanged


def push(
    data: str | Path,
    dataset: str,
    workspace: str | None = None,
    *,
    options: PushOptions | None = None,
    progress: Progress | None = None,
    featurize: Featurize | None = None,
) -> dict[str, Any]:
    """Push the pairs of a PAIRS folder, or pairs or prompts of a FEEDBACK folder, into a dataset; made where it is not there.

    The key comes from the environment variable ARGILLA_API_KEY. workspace: None takes the only one. featurize: as for
    `mmpo.annotate.select`, where --select fits a head to features. Returns counts: "records"
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
        read = read_items(data, options)
        every: dict[str, RecordItem] = {}
        for item in read.items:  # pairs that several rows have are one record
            every.setdefault(record_id(options.questions, item.prompt_id, item.ids), item)
        items = select(list(every.values()), read, options, featurize, progress)
        _check_hints(read.hints, options)
        design = _design(every.values(), options)
        guidelines = guidelines_of(design, options.guidelines, suggest=options.suggest)
        counts, started = _Counts(left_out=read.dropped), time.monotonic()
        try:
            found, new = ensure_dataset(
                client, space, dataset, design, guidelines, options.raters, own=options.guidelines is not None
            )
            target = _target(client, found["id"], read.hints, options, new, progress)
            _send_all(client, found["id"], items, target, counts, progress)
        except Unreachable as error:
            raise PartialResult(
                f"{error}. {counts.done:,} of {len(items):,} records are safe in {printable(dataset)!r}; the same command again sends "
                "the rest"
            ) from None
    return {
        "dataset": dataset, "workspace": space["name"], "dataset_id": found["id"], "new": new,
        "url": f"{client.url}/dataset/{found['id']}/annotation-mode", "questions": options.questions, "records": len(items),
        **vars(counts), "left_out": dict(counts.left_out), "seconds": time.monotonic() - started, "finished": not counts.left_out,
    }  # fmt: skip


def _design(items: Iterable[RecordItem], options: PushOptions) -> DatasetDesign:
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


@dataclass(frozen=True)
class _Target:
    """The dataset as it stands in Argilla, and what is to be suggested. there: its records by id; replies: fields for so many."""

    asked: Mapping[str, AskedQuestion]
    display: str
    replies: int
    there: Mapping[str, Mapping[str, Any]]
    hints: Mapping[str, SuggestionMargins]
    options: PushOptions

    def record(self, item: RecordItem) -> tuple[str, dict[str, Any] | None]:
        """Why it can't be sent or "", and the record to send or to update; ("", None): Argilla has it as it is."""
        own = record_id(self.options.questions, item.prompt_id, item.ids)
        if own in self.there:
            return self._update(item, own, self.there[own])
        if len(item.ids) > self.replies:
            return "too_many_completions", None
        if too_many_messages(item, self.display):
            return "too_many_messages", None
        order = order_of(item, self.options.questions, self.options.seed)
        record = {
            "external_id": own,
            "fields": fields_of(item, order, self.display),
            "metadata": metadata_of(item, order, self.display),
        }
        suggestions = self._suggestions(item, order)
        return "", {**record, "suggestions": suggestions} if suggestions else record

    def _update(self, item: RecordItem, own: str, old: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
        try:
            found = read_record(old, self.display)
        except NotOurs:
            return "edited_in_argilla", None
        before = old.get("metadata") or {}
        metadata = {**before, **metadata_of(item, found.ids, found.display)}
        have = {one["question_id"]: (one["value"], one["score"], one["agent"]) for one in old.get("suggestions") or ()}
        suggestions = self._suggestions(item, found.ids)
        fresh = [one for one in suggestions if have.get(one["question_id"]) != (one["value"], one["score"], one["agent"])]
        if metadata == before and not fresh:
            return "", None
        return "", {"external_id": own, "metadata": metadata, **({"suggestions": fresh} if fresh else {})}

    def _suggestions(self, item: RecordItem, order: Sequence[str]) -> list[dict[str, Any]]:
        """AI margins and ratings as suggestions, in the order shown."""
        found: list[dict[str, Any]] = []
        for aspect, hints in self.hints.items():
            agent = NO_AGENT.sub("-", hints.agent).strip()[:LONGEST_AGENT]
            shared = {"agent": agent if re.search("[A-Za-z0-9]", agent) else "ai", "type": "model"}
            if self.options.questions == "pairs":
                question, known = self.asked.get(question_name(aspect)), hints.margins.get((item.prompt_id, frozenset(order)))
                full = hints.much_better(self.options.much_better)
                if question is not None and known is not None and full:
                    value, score = suggestion_of(known, order, full)
                    found.append({"question_id": question.id, "value": value, "score": score, **shared})
                continue
            for letter, completion in zip(LETTERS, order):
                question, graded = self.asked.get(question_name(aspect, letter)), hints.scores.get((item.prompt_id, completion))
                if question is not None and graded is not None:
                    rating = int(question.low + graded[0] * (question.high - question.low) + 0.5)
                    found.append({"question_id": question.id, "value": rating, "score": None, **shared})
        return found


def _target(
    client: Client, dataset: str, hints: Mapping[str, SuggestionMargins], options: PushOptions, new: bool, progress: Progress | None
) -> _Target:
    settings = settings_of(client, dataset)
    replies = sum(one["name"].startswith("reply_") for one in settings["fields"])
    include = ["suggestions"] if hints else []
    there = {} if new else {one["external_id"]: one for one in records_of(client, dataset, include, progress)}
    return _Target(asked_of(settings), display_of(settings), replies, there, hints, options)


def _send_all(
    client: Client, dataset: str, items: Sequence[RecordItem], target: _Target, counts: _Counts, progress: Progress | None
) -> None:
    waiting: set[str] = set()

    def records() -> Iterator[dict[str, Any]]:
        for item in items:
            reason, record = target.record(item)
            if record is not None:
                waiting.add(record["external_id"])
                counts.suggested += bool(record.get("suggestions"))
                yield record
            elif reason:
                counts.left_out[reason] += 1
            else:
                counts.unchanged += 1

    for _, refused in upsert(client, dataset, records()):
        for record, detail in refused:
            counts.left_out["refused_by_argilla"] += 1
            counts.examples.setdefault("refused_by_argilla", detail)
            waiting.discard(record["external_id"])
        counts.updated += len(waiting & target.there.keys())
        counts.sent += len(waiting - target.there.keys())
        waiting.clear()
        if progress is not None:
            progress("pushing", counts.done, len(items))
    if progress is not None:
        progress("pushing", len(items), len(items))
