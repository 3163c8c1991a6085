"""For fine-tuning a judge: every pair in both orders, with the messages that `mmpo judge` sends and the probability of each verdict.

The verdicts are two letters of a rubric that stands beside the rows, so that `mmpo judge --rubric FOLDER/rubric.yaml` asks the tuned judge
in the very words that it was trained on.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from mmpo.annotate.exports.base import Export, ExportedPairs, Pair, line
from mmpo.annotate.pairings import digest_of
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.margins import target_probability
from mmpo.pipeline.tables import TOOLS, message_of, set_keys

VERDICTS = {"A": (1, "the first reply is better"), "B": (-1, "the second reply is better")}
RUBRIC = "rubric.yaml"
COLUMNS = ("prompt_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected", "quality_margin", "margin_se", "source")


def write_judge(pairs: ExportedPairs, target: Path) -> str:
    """{split}.jsonl: prompt and completion as SFT takes them, `verdicts` {letter: probability}; and the rubric."""
    from mmpo.annotate.judge.prompts import load_template
    from mmpo.annotate.judge.rubrics import RUBRICS, find_rubrics

    target.mkdir()
    grades = [{"label": label, "value": value, "meaning": meaning} for label, (value, meaning) in VERDICTS.items()]
    rubric = {"name": "overall", "criterion": RUBRICS["overall"].criterion, "grades": grades}
    (target / RUBRIC).write_text(yaml.safe_dump(rubric, sort_keys=False, allow_unicode=True), encoding="utf-8")
    [read] = find_rubrics([str(target / RUBRIC)])
    template = load_template("pairwise")

    def ask(row: FeedbackRow, places: tuple[int, int]) -> list[Pair]:
        from mmpo.annotate.judge.prompts import shown_of

        return template.messages(shown_of(row, places), [read], list(read.grade_meanings.items()), reasoning=False)

    for split in pairs.parts:
        with (target / f"{split}.jsonl").open("wb") as file:
            for batch in pairs.batches(split, [*COLUMNS, *({TOOLS} & set(pairs.keys))]):
                targets = target_probability(batch["quality_margin"].to_numpy(zero_copy_only=False), pairs.gamma or 0.0)
                for row, p in zip(batch.to_pylist(), targets.tolist()):
                    file.writelines(line(one) for one in _both_orders(row, p, ask))
    return f"mmpo judge FEEDBACK --mode pairwise --rubric {{out}}/{RUBRIC} --model TUNED ... asks the tuned judge in the same words"


def _both_orders(row: Pair, p: float, ask: Callable[[FeedbackRow, tuple[int, int]], list[Pair]]) -> Iterator[Pair]:
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
    for places in ((0, 1), (1, 0)):
        first = 1.0 - p if places[0] else p
        verdict = tied if row["quality_margin"] == 0 else "AB"[places[0]]
        yield {
            "prompt": ask(shown, places),
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
    frozenset(("margins", "errors", "turns", "system", "prefixes", "splits", "tools")),
    gamma="needed",
)
