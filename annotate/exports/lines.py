"""JSON lines: every column and the split (jsonl), and what rewardbench scores."""

from collections.abc import Sequence
from pathlib import Path

from mmpo.annotate.exports.base import TOLD, Export, ExportedPairs, as_said, line
from mmpo.pipeline.tables import PAIRS, Message, with_keys

AS_THEY_WERE = "margin=quality_margin,spread=margin_se"
"""The columns by which a build reads the pairs of jsonl. By their scores it would make every pair of a prompt's replies anew, with those
that the dataset had left out, and no standard errors."""


def write_jsonl(pairs: ExportedPairs, target: Path) -> str:
    """One row per pair, as PAIRS has them."""
    columns = with_keys(PAIRS, pairs.keys).names
    with target.open("wb") as file:
        for split in pairs.parts:
            file.writelines(line({**as_said(row), "split": split}) for row in pairs.rows(split, columns))
    return f"mmpo build {{out}} --format jsonl --columns {AS_THEY_WERE} --out FOLDER reads the same pairs, with their margins and errors"


def alternates(roles: Sequence[str]) -> bool:
    """Whether rewardbench can show a prompt: it numbers messages in place of reading their roles, user first, and stops at a prompt that
    does not end in the user's. A system message before it goes into the first message.

    >>> alternates(["system", "user"]), alternates(["user", "assistant", "user"]), alternates(["user", "assistant"])
    (True, True, False)
    """
    rest = list(roles[1:] if roles[:1] == ["system"] else roles)
    return len(rest) % 2 == 1 and all(role == ("user", "assistant")[place % 2] for place, role in enumerate(rest))


def write_rewardbench(pairs: ExportedPairs, target: Path) -> str:
    """One row per pair of the test split: prompt, chosen, rejected, models, subset (the source) and a number."""
    # One column has one type: prompts are strings where every one is a single user message, else lists of messages.
    single = all(len(_folded(row["prompt"])) == 1 for split in pairs.parts for row in pairs.rows(split, ["prompt"]))
    columns = ["prompt", "chosen", "rejected", "chosen_model", "rejected_model", "source"]
    number = 0
    with target.open("wb") as file:
        for split in pairs.parts:
            for row in pairs.rows(split, columns):
                messages = _folded(row["prompt"])
                texts = {name: row[name][-1]["content"] for name in ("chosen", "rejected")}
                models = {name: row[name] or "unknown" for name in ("chosen_model", "rejected_model")}
                prompt = messages[0]["content"] if single else messages
                file.write(line({"prompt": prompt, **texts, **models, "subset": row["source"], "id": number}))
                number += 1
    return "rewardbench --model MODEL --dataset {out} --load_json"


def _folded(prompt: Sequence[Message]) -> list[Message]:
    """A prompt with its system message at the head of the user's first."""
    said = [{"role": message["role"], "content": message["content"]} for message in prompt]
    if said[0]["role"] != "system":
        return said
    return [{"role": "user", "content": f"{said[0]['content']}\n\n{said[1]['content']}"}, *said[2:]]


JSONL = Export(
    "JSON lines with every column and the split",
    write_jsonl,
    f"mmpo build --format trl or jsonl with --columns {AS_THEY_WERE}: the same pairs, ids, margins and errors",
    keeps=frozenset(TOLD),
)
REWARDBENCH = Export(
    "JSON lines for rewardbench, test split; no ties",
    write_rewardbench,
    "rewardbench 0.1.4: its own loader renders every row",
    keeps=frozenset(("order", "models", "turns")),
    splits=("test",),
    ties=False,
    takes=alternates,
    reads=lambda replies: replies.field("content"),
)
