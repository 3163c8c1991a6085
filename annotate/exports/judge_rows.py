"""For fine-tuning a judge: every pair in both orders, with the messages that `mmpo judge` sends and the probability of each verdict.

The verdicts are two letters of a rubric that stands beside the rows, so that `mmpo judge --rubric FOLDER/rubric.yaml` asks the tuned judge
in the very words that it was trained on.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from mmpo.annotate.exports.base import Export, ExportedPairs, Pair, line, without_thinking
from mmpo.annotate.pairings import digest_of
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.margins import target_probability
from mmpo.pipeline.tables import TOOLS, Message, message_of, set_keys

if TYPE_CHECKING:
    from mmpo.annotate.judge.rubrics import Rubric

VERDICTS = {"A": (1, "the first reply is better"), "B": (-1, "the second reply is better")}
RUBRIC = "rubric.yaml"
MARK = re.compile("\0(\\w+)\0")
COLUMNS = ("prompt_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected", "quality_margin", "margin_se", "source")


def write_judge(pairs: ExportedPairs, target: Path) -> str:
    """{split}.jsonl: prompt and completion as SFT takes them, `verdicts` {letter: probability}; and the rubric."""
    from mmpo.annotate.judge.rubrics import RUBRICS, find_rubrics

    target.mkdir()
    grades = [{"label": label, "value": value, "meaning": meaning} for label, (value, meaning) in VERDICTS.items()]
    rubric = {"name": "overall", "criterion": RUBRICS["overall"].criterion, "grades": grades}
    (target / RUBRIC).write_text(yaml.safe_dump(rubric, sort_keys=False, allow_unicode=True), encoding="utf-8")
    [read] = find_rubrics([str(target / RUBRIC)])
    ask = _asker(read)
    for split in pairs.parts:
        with (target / f"{split}.jsonl").open("wb") as file:
            for batch in pairs.batches(split, [*COLUMNS, *({TOOLS} & set(pairs.keys))]):
                targets = target_probability(batch["quality_margin"].to_numpy(zero_copy_only=False), pairs.gamma or 0.0)
                for row, p in zip(batch.to_pylist(), targets.tolist()):
                    file.writelines(line(one) for one in _both_orders(row, p, ask))
    return f"mmpo judge FEEDBACK --mode pairwise --rubric {{out}}/{RUBRIC} --model TUNED ... asks the tuned judge in the same words"


def _asker(rubric: "Rubric") -> Callable[[FeedbackRow], tuple[list[Message], list[Message]]]:
    """What a judge is asked about a row's two replies, in both orders. The template is rendered once, with marks in the places of texts: a
    sandbox takes a millisecond a request."""
    from mmpo.annotate.judge.prompts import Shown, load_template, shown_of

    marks = {name: f"\0{name}\0" for name in ("conversation", "first", "second", "nonce")}
    replies = [{"label": label, "text": marks[name]} for label, name in (("A", "first"), ("B", "second"))]
    shown = Shown(marks["conversation"], replies, "", marks["nonce"])
    messages = load_template("pairwise").messages(shown, [rubric], list(rubric.grade_meanings.items()), reasoning=False)
    pieces = [(message["role"], MARK.split(message["content"])) for message in messages]

    def filled(texts: dict[str, str]) -> list[Message]:
        return [
            {"role": role, "content": "".join(texts[one] if place % 2 else one for place, one in enumerate(split))}
            for role, split in pieces
        ]

    def ask(row: FeedbackRow) -> tuple[list[Message], list[Message]]:
        found = shown_of(row, (0, 1))
        first, second = (reply["text"] for reply in found.replies)
        texts = {"conversation": found.conversation, "nonce": found.nonce, "first": first, "second": second}
        return filled(texts), filled({**texts, "first": second, "second": first})

    return ask


def _both_orders(row: Pair, p: float, ask: Callable[[FeedbackRow], tuple[list[Message], list[Message]]]) -> Iterator[Pair]:
    """The two rows of a pair; p: the probability that the chosen reply is better. Of a tie one letter, drawn by hash, is the completion in
    both orders: neither reply wins, nor does a place over many pairs."""
    replies, ids = (row["chosen"][-1], row["rejected"][-1]), (row["chosen_id"], row["rejected_id"])
    carried = tuple(map(set_keys, replies))
    shown = FeedbackRow(
        row["prompt_id"],
        [message_of(message) for message in row["prompt"]],
        ids,
        [one["content"] for one in replies],
        (None, None),
        carried=carried if any(carried) else (),
        tools=row.get(TOOLS),
    )
    tied = "AB"[digest_of(0, "tie", *sorted(ids))[0] % 2]
    kept = {name: row[name] for name in ("prompt_id", "quality_margin", "margin_se", "source")}
    for places, prompt in zip(((0, 1), (1, 0)), ask(shown)):
        first = 1.0 - p if places[0] else p
        verdict = tied if row["quality_margin"] == 0 else "AB"[places[0]]
        yield {
            "prompt": prompt,
            "completion": [{"role": "assistant", "content": verdict}],
            "verdicts": {"A": first, "B": 1.0 - first},
            "first_id": ids[places[0]],
            "second_id": ids[places[1]],
            **kept,
        }


JUDGE = Export(
    "folder of rows for fine-tuning a judge: both orders, soft verdicts σ(±γ·margin)",
    write_judge,
    "TRL 1.16.0: a step of SFTTrainer; `mmpo judge` sends the same messages",
    "folder",
    frozenset(("order", "margins", "errors", "turns", "system", "prefixes", "splits", "tools")),
    reads=without_thinking,
    gamma="needed",
)
