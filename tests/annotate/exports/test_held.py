"""What the table of exports claims that a format holds, and what is in its files: the values of every column are looked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from folders import contents, pairs_folder, split_folder

from mmpo.annotate.exports import EXPORTS, TOLD, export
from mmpo.pipeline.tables import PAIRS

COLUMNS: dict[str, dict[str, Any]] = {
    "margins": {"quality_margin": 0.8125},
    "errors": {"margin_se": 0.1875},
    "scores": {"score_chosen": 4.75, "score_rejected": 3.9375},
    "raters": {"raters": 1013},
    "preferring": {"preferring": 1009},
    "kind": {"kind": "human"},
    "models": {"chosen_model": "large", "rejected_model": "small"},
}
"""The columns that are a facet of their own, with values that nothing else has."""
TEXTS = {"prompt": "Which?", "chosen": "This one.", "rejected": "That one."}
IDS = {"prompt_id": "a" * 32, "chosen_id": "c" * 32, "rejected_id": "d" * 32}
"""Hashes of the texts, which whoever reads them again computes."""
ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
SWAPPED = {"chosen": "rejected", "chosen_id": "rejected_id", "chosen_model": "rejected_model"}


def values(inside: Any) -> Iterator[Any]:
    """Every text and number of a parsed file, numbers without their sign: a margin is written toward the reply that is shown first."""
    if isinstance(inside, dict | list):
        for one in inside.values() if isinstance(inside, dict) else inside:
            yield from values(one)
    elif isinstance(inside, int | float):
        yield abs(inside)
    else:
        yield inside


def found(out: Path) -> list[Any]:
    """The values of the rows that an export wrote, and the names of its files and folders."""
    rows: list[Any] = []
    for path in [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file()):
        rows += [] if path == out else path.relative_to(out).with_suffix("").parts
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        elif path.suffix in ("", ".jsonl"):
            rows += [orjson.loads(line) for line in path.read_bytes().splitlines()]
        elif path.suffix == ".json":
            rows.append(orjson.loads(path.read_bytes()))
    return list(values(rows))


@pytest.mark.parametrize("to", EXPORTS)
def test_the_table_says_of_every_column_whether_its_values_are_in_the_files(to: str, tmp_path: Path) -> None:
    """That the other reply is better is held where pairs whose sides are swapped make another export."""
    texts = {name: [{"role": ROLES[name], "content": text}] for name, text in TEXTS.items()}
    row = {**IDS, **texts, "source": "ours", **{name: value for columns in COLUMNS.values() for name, value in columns.items()}}
    assert set(row) == set(PAIRS.names)
    other = row | {a: row[b] for side, reverse in SWAPPED.items() for a, b in ((side, reverse), (reverse, side))}
    for name, one in (("as-it-is", row), ("swapped", other)):
        export(split_folder(tmp_path / f"{name}-pairs", test=[one]), to, tmp_path / name / "out")
    held = found(tmp_path / "as-it-is/out")
    assert "ours" in held and all(any(text in str(value) for value in held) for text in TEXTS.values())
    expected = {facet for facet, columns in COLUMNS.items() if set(columns.values()) <= set(held)}
    expected |= {"order"} if contents(tmp_path / "as-it-is") != contents(tmp_path / "swapped") else set()
    expected |= {"splits"} if "test" in held else set()
    assert EXPORTS[to].keeps & {*COLUMNS, "order", "splits"} == expected


@pytest.mark.parametrize("to", EXPORTS)
def test_the_table_says_whether_tools_and_thinking_are_in_the_files(to: str, tmp_path: Path) -> None:
    thinks = [{"role": "assistant", "content": "a", "reasoning_content": "hm, thinks"}]
    rejected = [{"role": "assistant", "content": "b"}]
    row = {"prompt": "Q", "tools": [{"name": "rain_of_today"}], "chosen": thinks, "rejected": rejected, "margin": 1}
    data = pairs_folder(tmp_path / "data", [row], format="trl", split=(0, 0, 1))
    export(data, to, tmp_path / "out")
    held = " ".join(map(str, found(tmp_path / "out")))
    expected = {facet for facet, text in (("tools", "rain_of_today"), ("thinking", "hm, thinks")) if text in held}
    assert EXPORTS[to].keeps & {"tools", "thinking"} == expected


def test_jsonl_holds_everything() -> None:
    assert EXPORTS["jsonl"].keeps == set(TOLD)
