"""What can be shown to people: pairs of completions, or all completions of a prompt; and what is known of their margins."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mmpo.annotate.pairings import Candidates, parse_pairing
from mmpo.annotate.rows import FeedbackRow, rows_of
from mmpo.annotate.select.known_margins import KnownMargin, KnownMargins
from mmpo.pipeline.tables import Message, completion_id, prompt_id

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


def true_ids(
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


def feedback_rows(table: pa.Table, dropped: Counter[str]) -> Iterator[FeedbackRow]:
    """The rows of FEEDBACK whose ids are those of their texts; the others are counted."""
    for start in range(0, table.num_rows, BLOCK):
        for row in rows_of(table.slice(start, BLOCK), scores=True, reference=None):
            if true_ids(row.prompt_id, row.prompt, row.ids, row.texts, row.carried, row.tools):
                yield row
            else:
                dropped["id_of_other_text"] += 1


def item_of(row: FeedbackRow, places: Sequence[int], known: Mapping[Any, KnownMargin]) -> RecordItem:
    """Some of a row's completions. known: margins by prompt and pair."""
    ids = tuple(row.ids[i] for i in places)
    couples = [frozenset((a, b)) for n, a in enumerate(ids) for b in ids[:n]] if known else []
    margins = {couple: known[row.prompt_id, couple] for couple in couples if (row.prompt_id, couple) in known}
    texts = tuple(row.texts[i] for i in places)
    models, carried = tuple(row.models[i] for i in places), tuple(row.carried[i] for i in places if row.carried)
    return RecordItem(row.prompt_id, row.prompt, ids, texts, models, row.source, margins, carried, row.tools)


def pair_items(row: FeedbackRow, pairs: str, seed: int, known: Mapping[Any, KnownMargin]) -> list[RecordItem]:
    """The pairs of a row that `--pairs` takes."""
    pairing, k = parse_pairing(pairs)
    return [item_of(row, two, known) for two in pairing.choose(Candidates(row.ids, row.scores, seed, k))]
