"""What can be shown to people: pairs of completions, or all completions of a prompt; and what deserves human eyes first
(`--select`).

Records are pushed in the order of a selection. `--limit` makes it count, since Argilla shuffles what is pending for each person.
Ties, and what nobody graded yet, follow in an order drawn by hash.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mmpo.annotate.argilla.known_margins import (
    AI,
    KnownMargin,
    KnownMargins,
    SuggestionMargins,
    feedback_hints,
    feedback_margins,
    full_of_pairs,
    known_of,
)
from mmpo.annotate.pairings import Candidates, digest_of, parse_pairing
from mmpo.annotate.rows import FeedbackRow, rows_of
from mmpo.pipeline.api import load_feedback, load_pairs
from mmpo.pipeline.arrow import without_texts
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import grade_statistics
from mmpo.pipeline.storage import read_manifest
from mmpo.pipeline.tables import TOOLS, Message, completion_id, message_of, prompt_id, set_keys

if TYPE_CHECKING:
    from mmpo.annotate.argilla.options import PushOptions

MOST_REPLIES = 10
BLOCK = 4096


@dataclass(frozen=True)
class RecordItem:
    """What one record asks about. margins: by pair of completion ids; those of pairs that nobody graded are missing. carried, tools: as in
    FeedbackRow, of these completions."""

    prompt_id: str
    prompt: Sequence[Message]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    models: tuple[str | None, ...]
    source: str | None
    margins: KnownMargins = field(default_factory=dict)
    carried: tuple[Mapping[str, str], ...] = ()
    tools: str | None = None


@dataclass
class ItemsRead:
    """items; dropped: why others are none, by reason; hints: by aspect, empty where no suggestion was asked for."""

    items: list[RecordItem]
    dropped: Counter[str]
    hints: dict[str, SuggestionMargins]


def read_items(data: str | Path, options: "PushOptions") -> ItemsRead:
    """The items of a PAIRS or FEEDBACK folder; the margins of a FEEDBACK are worked out where `--select` goes by them.

    Raises UserError: no such folder, a judge that it does not know, nothing to show.
    """
    folder = Path(data)
    kind = read_manifest(folder).get("kind")
    if kind == "pairs":
        if options.questions == "ratings":
            raise UserError(
                f"{folder} holds pairs; --questions ratings shows all replies of a prompt: give the FEEDBACK that they came from"
            )
        if options.judge is not None:
            raise UserError(f"{folder} holds pairs, whose margins name no judge: give the FEEDBACK folder, or leave out --judge")
        read = _of_pairs(load_pairs(folder), options)
    else:
        read = _of_feedback(load_feedback(folder), options)
    if not read.items:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in read.dropped.most_common(4))
        too_many = f"; a record shows {MOST_REPLIES} replies at most, --questions pairs takes any number"
        more = too_many if "too_many" in reasons else ""
        raise UserError(f"{folder} holds nothing to show to people" + (f" ({reasons})" if reasons else "") + more)
    return read


def _of_pairs(table: pa.Table, options: "PushOptions") -> ItemsRead:
    read = ItemsRead([], Counter(), {})
    hints: dict[tuple[str, frozenset[str]], KnownMargin] = {}
    for batch in table.to_batches(max_chunksize=BLOCK):
        for row in batch.to_pylist():
            ids = (row["chosen_id"], row["rejected_id"])
            if len(row["chosen"]) != 1 or len(row["rejected"]) != 1:
                read.dropped["several_messages"] += 1
                continue
            texts = (row["chosen"][0]["content"], row["rejected"][0]["content"])
            prompt, tools = [message_of(message) for message in row["prompt"]], row.get(TOOLS)
            carried = tuple(set_keys(row[side][0]) for side in ("chosen", "rejected"))
            if not _true_ids(row["prompt_id"], prompt, ids, texts, carried, tools):
                read.dropped["id_of_other_text"] += 1
                continue
            known = known_of(row)
            item = RecordItem(
                row["prompt_id"], prompt, ids, texts, (row["chosen_model"], row["rejected_model"]), row["source"],
                {frozenset(ids): known}, carried if any(carried) else (), tools,
            )  # fmt: skip
            read.items.append(item)
            if known.kind in AI:
                hints[item.prompt_id, frozenset(ids)] = known
    if options.suggest:
        if len(options.aspects) > 1:
            raise UserError(
                "--suggest: pairs have one margin, and several aspects are asked; give the FEEDBACK folder, or one aspect"
            )
        if not hints:
            raise UserError(
                "--suggest shows AI margins, and every margin here is people's: leave it out, so that nobody is led by others"
            )
        kinds = Counter(known.kind for known in hints.values())
        full = full_of_pairs(table)
        aspect = next(iter(options.aspects))
        read.hints = {aspect: SuggestionMargins(hints, {}, full, full, kinds.most_common(1)[0][0])}
    return read


def _true_ids(
    own: str,
    prompt: Sequence[Message],
    ids: Sequence[str],
    texts: Sequence[str],
    carried: Sequence[Mapping[str, str]],
    tools: str | None,
) -> bool:
    """Whether the ids are those of the texts: what comes back is matched by them."""
    replies = zip(ids, texts, carried or [{}] * len(ids), strict=True)
    return prompt_id(prompt, tools) == own and all(completion_id(own, text, **more) == one for one, text, more in replies)


def _of_feedback(table: pa.Table, options: "PushOptions") -> ItemsRead:
    names = without_texts(table)
    groups, judge = grade_statistics(names).groups, options.judge
    raters = sorted({group.rater for group in groups})
    if judge is not None and judge not in raters:
        raise unknown_name("rater (--judge)", judge, raters[:40])
    groups = [group for group in groups if judge in (None, group.rater)]
    known = {} if options.select == "random" else feedback_margins(names, groups)[0]
    read = ItemsRead([], Counter(), {})
    if options.suggest:
        by_ai = [group for group in groups if group.kind in ("ai", "reward_model")]
        read.hints = {aspect: feedback_hints(names, by_ai, aspect, alone=len(options.aspects) == 1) for aspect in options.aspects}
    pairing, k = parse_pairing(options.pairs)
    for start in range(0, table.num_rows, BLOCK):
        for row in rows_of(table.slice(start, BLOCK), scores=True, reference=None):
            if not _true_ids(row.prompt_id, row.prompt, row.ids, row.texts, row.carried, row.tools):
                read.dropped["id_of_other_text"] += 1
            elif options.questions == "pairs":
                chosen = pairing.choose(Candidates(row.ids, row.scores, options.seed, k))
                read.dropped["no_pair"] += not chosen
                read.items += [_item(row, two, known) for two in chosen]
            elif not 1 <= len(row.ids) <= MOST_REPLIES:
                read.dropped["no_completion" if not row.ids else "too_many_completions"] += 1
            else:
                read.items.append(_item(row, range(len(row.ids)), known))
    read.dropped = +read.dropped
    return read


def _item(row: FeedbackRow, places: Sequence[int], known: Mapping[Any, KnownMargin]) -> RecordItem:
    ids = tuple(row.ids[i] for i in places)
    couples = [frozenset((a, b)) for n, a in enumerate(ids) for b in ids[:n]]
    margins = {couple: known[row.prompt_id, couple] for couple in couples if (row.prompt_id, couple) in known}
    texts = tuple(row.texts[i] for i in places)
    models, carried = tuple(row.models[i] for i in places), tuple(row.carried[i] for i in places if row.carried)
    return RecordItem(row.prompt_id, row.prompt, ids, texts, models, row.source, margins, carried, row.tools)


@dataclass(frozen=True)
class Selection:
    """urgency: of what is known of a pair, the larger the sooner; None where that says nothing. needs: what is missing then."""

    urgency: Callable[[KnownMargin], float | None]
    needs: str
    summary: str


def _disagreement(known: KnownMargin) -> float | None:
    """The share of raters on the losing side; of equal ones the larger spread between raters first."""
    if known.raters < 2:
        return None
    spread = (known.se or 0.0) * known.raters**0.5
    return known.minority + 1e-3 * spread / (1 + spread)


SELECTIONS: dict[str, Selection] = {
    "random": Selection(lambda known: None, "", "in an order drawn by hash"),
    "uncertain": Selection(
        lambda known: known.se, "margins with a standard error", "the largest standard error of the margin first"
    ),
    "small-margin": Selection(lambda known: -abs(known.margin), "margins", "the smallest margin first"),
    "disagreement": Selection(_disagreement, "pairs that two raters graded", "those on which raters disagree most first"),
}
"""The family of `--select`."""


def select(items: Iterable[RecordItem], name: str, limit: int | None, seed: int) -> list[RecordItem]:
    """The items in the order of a selection, the first `limit` of them. Raises UserError where no item has what it goes by."""
    way = SELECTIONS[name]
    urgent: list[tuple[float, bytes, RecordItem]] = []
    known = 0
    for item in items:
        values = [value for one in item.margins.values() if (value := way.urgency(one)) is not None]
        known += bool(values)
        draw = digest_of(seed, "select", *sorted(item.ids))
        urgent.append((-max(values) if values else float("inf"), draw, item))
    if way.needs and not known:
        raise UserError(
            f"--select {name} needs {way.needs}, and there are none here; judge the candidates first, or use --select random"
        )
    urgent.sort(key=lambda one: one[:2])
    return [item for *_, item in urgent[:limit]]
