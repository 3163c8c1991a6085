"""The list of chosen pairs as a file: JSON lines, or CSV for a spreadsheet. With a column `gap` filled in, `mmpo build` reads it."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpo.annotate.pairings import digest_of
from mmpo.annotate.select.choose import ChosenItem
from mmpo.annotate.select.items import RecordItem
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import atomic_file
from mmpo.pipeline.tables import TOOLS

SUFFIXES = (".jsonl", ".csv")


def check_list(out: Path) -> None:
    """Raise UserError where the name says no format, or a folder stands there."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: name a file that ends in {' or '.join(SUFFIXES)}")
    if out.is_dir():
        raise UserError(f"--out {out}: that is a folder; name a file")


def list_rows(chosen: Sequence[ChosenItem], seed: int) -> list[dict[str, Any]]:
    """One row per pair; which completion is the first is drawn by hash, so that no place gives the better one away."""
    rows = []
    for rank, (item, reason, score, parts) in enumerate(chosen, 1):
        first, second = sorted(range(2), key=lambda i: digest_of(seed, item.ids[i]))
        rows.append(
            {
                "rank": rank, "prompt": [dict(message) for message in item.prompt],
                "first": _reply(item, first), "second": _reply(item, second),
                "first_model": item.models[first], "second_model": item.models[second], "source": item.source,
                "prompt_id": item.prompt_id, "first_id": item.ids[first], "second_id": item.ids[second],
                "reason": reason, "score": score, **parts, **({TOOLS: item.tools} if item.tools else {}),
            }
        )  # fmt: skip
    return rows


def _reply(item: RecordItem, place: int) -> str | list[dict[str, Any]]:
    """A completion as its text; one that carries more (tool calls, thinking apart) as a message."""
    more = item.carried[place] if item.carried else {}
    return [{"role": "assistant", "content": item.texts[place], **more}] if more else item.texts[place]


def write_list(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the file, whole or not at all. In CSV a prompt of one message by the user is its text, else JSON."""
    text = io.StringIO(newline="")
    if out.suffix == ".csv":
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_file(out) as temporary:
        temporary.write_bytes(text.getvalue().encode())


def _cell(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    alone = len(value) == 1 and value[0]["role"] == "user" and set(value[0]) == {"role", "content"}
    return value[0]["content"] if alone else json.dumps(value, ensure_ascii=False)
