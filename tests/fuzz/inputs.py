"""Inputs gone wrong in seeded ways: rows and cells, text and bytes of files, dataset folders, recipes, option values."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from folders import write_rows

ODD: list[Any] = [
    None, "", " ", "NaN", "inf", "1,5", "4/5", "N/A", "\t", "\x07", "a\x00b", "\u202ename", "😀" * 3, "x" * 5000, "[1, 2", "{}",
    "<b>bold</b>", "[/b]", "../x", "-1", "1e400", 0, -0.0, 1, -1, 2, 0.1, 1e-300, 1e308, -1e308, 10**30, True, [], {}, [None], [[]],
    [1, "a"], {"role": "user"}, [{"role": "user", "content": None}], [{"role": "robot", "content": "x"}],
    [{"role": "user", "content": "Hi"}],
    '[{"role": "user"}]',
]  # fmt: skip
"""Values for any place. What is text stays harmless for other software."""


def good_rows(pick: random.Random, layout: str) -> list[dict[str, Any]]:
    """Ratings, prompts, pairs or comparisons as a user would hold them."""
    rows: list[dict[str, Any]] = []
    for p in range(pick.randrange(2, 9)):
        texts = [f"answer {c} to {p}" for c in range(pick.randrange(2, 4))]
        more = {"rater": pick.choice(["ann", "ben", "cem"])} if pick.random() < 0.7 else {}
        match layout:
            case "rating":
                rows += [{"prompt": f"question {p}?", "completion": text, "score": pick.randrange(1, 6), **more} for text in texts]
            case "prompt":
                rows.append(
                    {"prompt": f"question {p}?", "completions": texts, "scores": [pick.randrange(1, 6) for _ in texts], **more}
                )
            case "pair":
                rows.append(
                    {"prompt": f"question {p}?", "chosen": texts[0], "rejected": texts[1], "score_chosen": 4, "score_rejected": 2}
                )
            case _:
                rows.append(
                    {"prompt": f"question {p}?", "first": texts[0], "second": texts[1], "gap": pick.randrange(-3, 4), **more}
                )
    return rows


def spoiled(pick: random.Random, value: Any) -> Any:
    """The JSON value with something changed in it: a value in another's place, a key or an item gone, twice or by another name."""
    if isinstance(value, list) and value and pick.random() < 0.9:
        at = pick.randrange(len(value))
        changed = pick.choice(["inside", "inside", "gone", "twice", "odd"])
        new = {"inside": [spoiled(pick, value[at])], "gone": [], "twice": [value[at]] * 2, "odd": [pick.choice(ODD)]}[changed]
        return [*value[:at], *new, *value[at + 1 :]]
    if isinstance(value, dict) and value and pick.random() < 0.95:
        key = pick.choice(sorted(value))
        changed = pick.choice(["inside", "inside", "inside", "gone", "renamed", "more"])
        rest = {name: one for name, one in value.items() if name != key}
        new = {
            "inside": {key: spoiled(pick, value[key])},
            "gone": {},
            "renamed": {key.upper(): value[key]},
            "more": {key: value[key], "margin": 1},
        }
        return rest | new[changed]
    return pick.choice(ODD)


def source_file(pick: random.Random, folder: Path) -> tuple[Path, str]:
    """A file of feedback with some faults, and the format that it is meant to be read as."""
    layout, suffix = (
        pick.choice(["rating", "prompt", "pair", "comparison"]),
        pick.choice([".jsonl", ".jsonl", ".json", ".csv", ".parquet"]),
    )
    rows: Any = good_rows(pick, layout)
    for _ in range(pick.randrange(0, 4)):
        rows = spoiled(pick, rows)
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    path = folder / f"file{suffix}"
    if suffix in (".csv", ".parquet"):
        frame = pd.DataFrame(rows)
        if suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            try:
                frame.to_parquet(path)
            except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeEncodeError):
                frame.map(lambda value: value if value is None else str(value)).to_parquet(path)
    else:
        write_rows(path, rows)
    if suffix != ".parquet" and pick.random() < 0.3:
        path.write_bytes(_other_bytes(pick, path.read_bytes()))
    known = {".jsonl": "jsonl", ".json": "jsonl"}.get(suffix, suffix[1:])
    return path, pick.choice([known] * 6 + ["jsonl", "csv", "ultrafeedback", "trl", "shp", "feedback", "alpaca-eval", "nothing"])


def _other_bytes(pick: random.Random, data: bytes) -> bytes:
    """Text of a file cut, repeated, in another encoding, or with some bytes changed."""
    at = pick.randrange(len(data) + 1)
    return pick.choice(
        [
            lambda: data[:at],
            lambda: data[at:],
            lambda: data[:at] + data[:at],
            lambda: data[:at] + bytes(pick.randrange(256) for _ in range(4)) + data[at + 2 :],
            lambda: data.decode("utf-8", "replace").encode("utf-16"),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b",", b";"),
            lambda: b"",
        ]
    )()


def dataset(pick: random.Random, good: Path, folder: Path) -> Path:
    """A copy of a dataset folder with one or two faults."""
    path = folder / "dataset"
    shutil.copytree(good, path)
    for _ in range(pick.randrange(1, 3)):
        parts = sorted(file for file in path.rglob("*.parquet") if file.is_file())
        if parts:
            pick.choice(_FAULTS)(pick, path, pick.choice(parts))
    return path


def _changed_table(pick: random.Random, folder: Path, part: Path) -> None:
    try:
        table = pq.read_table(part)
    except (pa.ArrowException, OSError):
        return
    if not table.num_columns:
        return
    name = pick.choice(table.column_names)
    at, rows = table.column_names.index(name), table.num_rows
    change = pick.choice(["gone", "null", "text", "more", "none", "twice", "spoiled"])
    if change == "gone":
        table = table.drop_columns([name])
    elif change == "null":
        table = table.set_column(at, name, pa.nulls(rows, table.schema.field(name).type))
    elif change == "text":
        table = table.set_column(at, name, pa.array(["x"] * rows, pa.string()))
    elif change == "more":
        table = table.append_column("margin", pa.array([1.0] * rows))
    elif change in ("none", "twice"):
        table = table.slice(0, 0) if change == "none" else pa.concat_tables([table, table])
    else:
        values = spoiled(pick, json.loads(json.dumps(table[name].to_pylist())))
        if isinstance(values, list) and len(values) == rows:
            try:
                table = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                return
    pq.write_table(table, part)


def _changed_metadata(pick: random.Random, folder: Path, part: Path) -> None:
    try:
        table = pq.read_table(part)
    except (pa.ArrowException, OSError):
        return
    raw = pick.choice([b"", b"{", b"[]", b"null", b'{"schema_version": 9}', b'{"schema_version": "1"}', None])
    pq.write_table(table.replace_schema_metadata(None if raw is None else {b"mmpo": raw}), part)


def _changed_manifest(pick: random.Random, folder: Path, part: Path) -> None:
    path = folder / "manifest.json"
    if not path.is_file():
        return
    if pick.random() < 0.3:
        path.write_bytes(pick.choice([b"", b"{", b"[]", b"null", b"{}", b"\xff"]))
        return
    try:
        path.write_text(json.dumps(spoiled(pick, json.loads(path.read_bytes()))))
    except ValueError:
        return


def _truncated(pick: random.Random, folder: Path, part: Path) -> None:
    part.write_bytes(part.read_bytes()[: pick.choice([0, 4, 100])])


def _a_folder(pick: random.Random, folder: Path, part: Path) -> None:
    part.unlink()
    part.mkdir()


def _gone(pick: random.Random, folder: Path, part: Path) -> None:
    target = pick.choice(
        [part, *{part.parent} - {folder}, folder / "manifest.json", folder / "README.md", folder / "rejects.parquet"]
    )
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


_FAULTS: list[Callable[[random.Random, Path, Path], None]] = [
    _changed_table, _changed_table, _changed_table, _changed_metadata, _changed_manifest, _changed_manifest, _truncated, _a_folder, _gone,
]  # fmt: skip


def option_value(pick: random.Random, good: list[str]) -> str:
    """A value for an option, mostly one that is allowed."""
    return (
        pick.choice(good)
        if pick.random() < 0.7
        else pick.choice(["", "x", "-1", "0", "1e9", "nan", "1:0", "null", "a=b", "[", "😀", "9" * 40])
    )


def recipe(pick: random.Random, source: Path, folder: Path) -> Path:
    """A recipe file with some faults."""
    values: Any = {
        "out": str(folder / "out"),
        "build": {"inputs": [str(source)], "format": "jsonl", "scale": [0, 5]},
        "report": True,
    }
    for _ in range(pick.randrange(0, 3)):
        values = spoiled(pick, values)
    path = folder / "recipe.yaml"
    text = json.dumps(values)
    if pick.random() < 0.4:
        at = pick.randrange(len(text))
        text = (
            text[:at]
            + pick.choice(["", ":", "{", "- ", "\n", "1: ", "on: ", '"', "&a ", "*a", "!x ", "\t"])
            + text[at + pick.randrange(3) :]
        )
    path.write_text(text)
    return path
