"""What can be shown to people: pairs of completions, or all completions of a prompt; and what deserves human eyes first
(`--select`).

Records are pushed in the order of a selection. `--limit` makes it count, since Argilla shuffles what is pending for each person.
Ties, and what nobody graded yet, follow in an order drawn by hash.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mmpo.annotate.argilla.suggestions import AI, SuggestionMargins, feedback_hints, full_of_pairs
from mmpo.annotate.select import (
    HUMAN,
    SELECTIONS,
    Featurize,
    GradedPairs,
    KnownMargin,
    Pool,
    RecordItem,
    feedback_margins,
    feedback_rows,
    graded_pairs,
    in_order,
    item_of,
    known_of,
    pair_items,
    true_ids,
)
from mmpo.pipeline.api import load_feedback, load_pairs
from mmpo.pipeline.arrow import without_texts
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import grade_statistics
from mmpo.pipeline.progress import Progress
from mmpo.pipeline.storage import on_disk, read_manifest
from mmpo.pipeline.tables import TOOLS, message_of, set_keys

if TYPE_CHECKING:
    from mmpo.annotate.argilla.options import PushOptions

MOST_REPLIES = 10
BLOCK = 4096


@dataclass
class ItemsRead:
    """items; dropped: why others are none, by reason; hints: by aspect, empty where no suggestion was asked for.

    context: items with all completions that were graded, and who graded them: what `--select` may look at.
    """

    items: list[RecordItem]
    dropped: Counter[str]
    hints: dict[str, SuggestionMargins]
    context: list[RecordItem] = field(default_factory=list)
    graded: GradedPairs = field(default_factory=lambda: GradedPairs({}, {}, {}))


def read_items(data: str | Path, options: "PushOptions") -> ItemsRead:
    """The items of a PAIRS or FEEDBACK folder; the margins of a FEEDBACK are worked out where `--select` goes by them.

    Raises UserError: no such folder, a judge that it does not know, nothing to show.
    """
    folder = on_disk(data)
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
            if not true_ids(row["prompt_id"], prompt, ids, texts, carried, tools):
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
    read.context = read.items
    by_pair = {(item.prompt_id, pair): known for item in read.items for pair, known in item.margins.items()}
    read.graded = GradedPairs(
        {key: known for key, known in by_pair.items() if known.kind == HUMAN},
        {key: known for key, known in by_pair.items() if known.kind != HUMAN},
        {},
        nameless=True,
    )
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


def _of_feedback(table: pa.Table, options: "PushOptions") -> ItemsRead:
    names = without_texts(table)
    groups, judge = grade_statistics(names).groups, options.judge
    raters = sorted({group.rater for group in groups})
    if judge is not None and judge not in raters:
        raise unknown_name("rater (--judge)", judge, raters[:40])
    wanted = [group for group in groups if judge in (None, group.rater) or group.kind == HUMAN]
    groups = [group for group in groups if judge in (None, group.rater)]
    known = {} if options.select == "random" else feedback_margins(names, groups)[0]
    read = ItemsRead([], Counter(), {})
    if options.suggest:
        by_ai = [group for group in groups if group.kind in ("ai", "reward_model")]
        read.hints = {aspect: feedback_hints(names, by_ai, aspect, alone=len(options.aspects) == 1) for aspect in options.aspects}
    if SELECTIONS[options.select].by_models:
        read.graded = graded_pairs(names, wanted, (HUMAN,), None)
    for row in feedback_rows(table, read.dropped):
        read.context.append(item_of(row, range(len(row.ids)), known))
        if options.questions == "pairs":
            chosen = pair_items(row, options.pairs, options.seed, known)
            read.dropped["no_pair"] += not chosen
            read.items += chosen
        elif not 1 <= len(row.ids) <= MOST_REPLIES:
            read.dropped["no_completion" if not row.ids else "too_many_completions"] += 1
        else:
            read.items.append(read.context[-1])
    read.dropped = +read.dropped
    return read


def select(
    items: Sequence[RecordItem],
    read: ItemsRead,
    options: "PushOptions",
    featurize: Featurize | None = None,
    progress: Progress | None = None,
) -> list[RecordItem]:
    """The items in the order of `--select`, the first `--limit` of them. Raises UserError where no item has what it goes by."""
    pool = Pool(items, read.context, read.graded, options.seed, options.features, featurize)
    return [one.item for one in in_order(pool, options.select, options.limit, progress=progress, option="--select")]
