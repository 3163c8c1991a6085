"""The folder of an evaluation, `mmpo evaluate --out DIR`: what was measured, every pair's values, and a page; whole or not at all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import atomic_folder, plain

SUMMARY, PAIR_VALUES, PAGE = "evaluation.json", "pairs.parquet", "page.html"


def check_evaluation(out: str | Path) -> None:
    """Raises UserError where the folder holds anything but an earlier evaluation."""
    path = Path(out)
    if path.is_file():
        raise UserError(f"--out {out} is a file: name a folder")
    strange = sorted(one.name for one in path.iterdir() if one.name not in (SUMMARY, PAIR_VALUES, PAGE)) if path.is_dir() else []
    if strange:
        raise UserError(
            f"--out {out} holds {', '.join(strange[:3])}, which no evaluation wrote, and is left alone: name another folder"
        )


def write_evaluation(out: str | Path, found: Mapping[str, Any], title: str, pairs: Callable[[Path], None]) -> None:
    """Write the folder. pairs: writes every pair's values to the file that it is given."""
    from mmpo.pipeline.report import write_evaluation_page

    check_evaluation(out)
    with atomic_folder(out) as folder:
        text = json.dumps(plain(found), ensure_ascii=False, indent=1)
        (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        pairs(folder / PAIR_VALUES)
        write_evaluation_page(found, folder / PAGE, title)
        check_evaluation(out)
