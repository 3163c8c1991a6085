"""What can be shown to people: pairs of completions, or all completions of a prompt, and what is known of their margins already."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpo.annotate.argilla.known_margins import (
    AI,
    Hints,
    Known,
    Margins,
    feedback_hints,
    feedback_margins,
    full_of_pairs,
    known_of,
    without_texts,
)
from mmpo.annotate.pairings import Candidates, parse_pairing
from mmpo.annotate.rows import rows_of
from mmpo.pipeline.api import load_feedback, load_pairs
from mmpo.pipeline.arrow import flat, offsets_of
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import grade_statistics
from mmpo.pipeline.storage import read_manifest
from mmpo.pipeline.tables import Message, completion_id, prompt_id

__all__ = ["Item", "Read", "read_items"]

MOST_REPLIES = 10
BLOCK = 4096


@dataclass(frozen=True)
class Item:
    """What one record asks about. margins: by pair of completion ids; those of pairs that nobody graded are missing."""

    prompt_id: str
    prompt: Sequence[Message]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    models: tuple[str | None, ...]
    source: str | None
    margins: Margins = field(default_factory=dict)


@dataclass
class Read:
    """items; dropped: why others are none, by reason; hints: by aspect, empty where no suggestion was asked for."""

    items: list[Item]
    dropped: Counter[str]
    hints: dict[str, Hints]


def read_items(
    data: str | Path,
    *,
    questions: str,
    pairs: str,
    aspects: Sequence[str],
    judge: str | None,
    suggest: bool,
    select: str,
    seed: int,
) -> Read:
    """The items of a PAIRS or FEEDBACK folder; the margins of a FEEDBACK are worked out where `select` goes by them.

    Raises UserError: no such folder, a judge that it does not know, nothing to show.
    """
    folder = Path(data)
    kind = read_manifest(folder).get("kind")
    if kind == "pairs":
        if questions == "ratings":
            raise UserError(
                f"{folder} holds pairs; --questions ratings shows all replies of a prompt: give the FEEDBACK that they came from"
            )
        if judge is not None:
            raise UserError(f"{folder} holds pairs, whose margins name no judge: give the FEEDBACK folder, or leave out --judge")
        read = _of_pairs(load_pairs(folder), aspects, suggest)
    else:
        read = _of_feedback(load_feedback(folder), questions, pairs, aspects, judge, suggest, select, seed)
    if not read.items:
        told = ", ".join(f"{reason} {count:,}" for reason, count in read.dropped.most_common(4))
        more = f"; a record shows {MOST_REPLIES} replies at most, --questions pairs takes any number" if "too_many" in told else ""
        raise UserError(f"{folder} holds nothing to show to people" + (f" ({told})" if told else "") + more)
    return read


def _of_pairs(table: pa.Table, aspects: Sequence[str], suggest: bool) -> Read:
    read = Read([], Counter(), {})
    hints: dict[tuple[str, frozenset[str]], Known] = {}
    for batch in table.to_batches(max_chunksize=BLOCK):
        for row in batch.to_pylist():
            ids = (row["chosen_id"], row["rejected_id"])
            if len(row["chosen"]) != 1 or len(row["rejected"]) != 1:
                read.dropped["several_messages"] += 1
                continue
            texts = (row["chosen"][0]["content"], row["rejected"][0]["content"])
            if not _true_ids(row["prompt_id"], row["prompt"], ids, texts):
                read.dropped["id_of_other_text"] += 1
                continue
            known = known_of(row)
            item = Item(
                row["prompt_id"], row["prompt"], ids, texts, (row["chosen_model"], row["rejected_model"]), row["source"],
                {frozenset(ids): known},
            )  # fmt: skip
            read.items.append(item)
            if known.kind in AI:
                hints[item.prompt_id, frozenset(ids)] = known
    if suggest:
        if len(aspects) > 1:
            raise UserError(
                "--suggest: pairs have one margin, and several aspects are asked; give the FEEDBACK folder, or one aspect"
            )
        if not hints:
            raise UserError(
                "--suggest shows AI margins, and every margin here is people's: leave it out, so that nobody is led by others"
            )
        kinds = Counter(known.kind for known in hints.values())
        full = full_of_pairs(table)
        read.hints = {aspects[0]: Hints(hints, {}, full, full, kinds.most_common(1)[0][0])}
    return read


def _true_ids(own: str, prompt: Sequence[Message], ids: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether the ids are those of the texts: what comes back is matched by them."""
    return prompt_id(prompt) == own and all(completion_id(own, text) == one for one, text in zip(ids, texts))


def _of_feedback(
    table: pa.Table, questions: str, pairs: str, aspects: Sequence[str], judge: str | None, suggest: bool, select: str, seed: int
) -> Read:
    names = without_texts(table)
    groups = list(grade_statistics(names).groups)
    if judge is not None and judge not in {group.rater for group in groups}:
        raise unknown_name("rater (--judge)", judge, sorted({group.rater for group in groups})[:40])
    kinds = [kind for kind in ("ai", "reward_model") if any(group.kind == kind for group in groups)]
    raters = None if judge is None else [judge]
    known = {} if select == "random" else feedback_margins(names, groups, None, raters, None)[0]
    read = Read([], Counter(), {})
    if suggest:
        read.hints = {aspect: feedback_hints(names, groups, kinds, raters, aspect, alone=len(aspects) == 1) for aspect in aspects}
    pairing, k = parse_pairing(pairs)
    for block in _blocks(table):
        for row, models, source in _rows(block):
            if not _true_ids(row.prompt_id, row.prompt, row.ids, row.texts):
                read.dropped["id_of_other_text"] += 1
            elif questions == "pairs":
                chosen = pairing.choose(Candidates(row.ids, row.scores, seed, k))
                read.dropped["no_pair"] += not chosen
                for two in chosen:
                    read.items.append(_item(row, two, models, source, known))
            elif not 1 <= len(row.ids) <= MOST_REPLIES:
                read.dropped["no_completion" if not row.ids else "too_many_completions"] += 1
            else:
                read.items.append(_item(row, range(len(row.ids)), models, source, known))
    read.dropped = Counter({reason: count for reason, count in read.dropped.items() if count})
    return read


def _item(row: Any, places: Sequence[int], models: Sequence[str | None], source: str | None, known: Mapping[Any, Known]) -> Item:
    ids = tuple(row.ids[i] for i in places)
    couples = [frozenset((a, b)) for n, a in enumerate(ids) for b in ids[:n]]
    margins = {couple: known[row.prompt_id, couple] for couple in couples if (row.prompt_id, couple) in known}
    texts = tuple(row.texts[i] for i in places)
    return Item(row.prompt_id, row.prompt, ids, texts, tuple(models[i] for i in places), source, margins)


def _blocks(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, BLOCK) for start in range(0, table.num_rows, BLOCK))


def _rows(table: pa.Table) -> Iterator[tuple[Any, list[str | None], str | None]]:
    """Each row with its completions' models and its source."""
    completions = flat(table["completions"])
    ends = offsets_of(completions)
    models = completions.flatten().field("model").to_pylist()
    sources = table["source"].to_pylist()
    for i, row in enumerate(rows_of(table, scores=True, reference=None)):
        yield row, models[ends[i] : ends[i + 1]], sources[i]
