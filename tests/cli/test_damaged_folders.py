"""Dataset folders whose parts are damaged: every command refuses them, naming part and fault; for `validate` that is a failed check."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import graded, refused
from folders import pairs_folder

from mmpo.annotate.argilla.items import read_items
from mmpo.annotate.argilla.options import PushOptions
from mmpo.cli.main import run
from mmpo.pipeline import UserError


def edited(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Damage to a part that is still a Parquet file."""

    def damage(part: Path) -> None:
        table = pq.ParquetFile(part).read()
        pq.write_table(change(table), part)

    return damage


def key(raw: bytes) -> Callable[[Path], None]:
    return edited(lambda table: table.replace_schema_metadata({b"mmpo": raw}))


def nulls(table: pa.Table) -> pa.Table:
    place = table.column_names.index("prompt")
    empty = [[{"role": "user", "content": None}]] * table.num_rows
    return table.set_column(place, table.schema.field("prompt"), pa.array(empty, table.schema.field("prompt").type))


def text(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("prompt"), "prompt", pa.array(["a text"] * table.num_rows))


def flipped(part: Path) -> None:
    """One bit at the end of the first column's last page: its header's statistics, which no checksum covers, change no value."""
    column = pq.ParquetFile(part).metadata.row_group(0).column(0)
    raw = bytearray(part.read_bytes())
    raw[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 8] ^= 1
    part.write_bytes(raw)


def folder(part: Path) -> None:
    part.unlink()
    part.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a column gone": (edited(lambda table: table.drop_columns(["source"])), "lacks the columns source"),
    "truncated": (lambda part: part.write_bytes(part.read_bytes()[:-50]), "truncated or damaged"),
    "a bit flipped": (flipped, "truncated or damaged"),
    "another key": (key(b"\xff{"), "under the key `mmpo` are damaged"),
    "a list as key": (key(b"[1]"), "under the key `mmpo` are no JSON object"),
    "another version": (key(b'{"schema_version": 99}'), "schema version 99; this mmpo reads"),
    "null texts": (edited(nulls), "row 1 has no prompt.content (null)"),
    "texts for messages": (edited(text), "prompt is of type string"),
    "a folder": (folder, "it is a folder"),
    "gone": (Path.unlink, "is gone"),
    "one too many": (lambda part: shutil.copy(part, part.with_name("part-00009.parquet")), "its manifest does not name it"),
}
PAIRS = [
    "report {} --out {out}/page.html",
    "gamma {}",
    "export {} --to jsonl --out {out}/a.jsonl",
    "train reward --data {} --model tiny --out {out}/run",
    "evaluate reward --model {model} --gamma 1 --data {} --split train",
    "argilla push {}",
]
FEEDBACK = [
    "agree {}",
    "judge {} --model m --base-url http://127.0.0.1:9/v1 --out {out}/judged",
    "argilla push {}",
    "build {} --format feedback --out {out}/pairs",
    "select {} --out {out}/list.jsonl",
]
OTHERWISE = {
    ("train", "null texts"): "have a message without role or text in prompt",
    ("evaluate", "null texts"): "have a message without role or text in prompt",
    ("build", "a column gone"): "needs the column 'source'",
    ("build", "a folder"): "is a directory",
}
"""What is said by commands that read other tables of these formats, too."""
NOT_READ = {("gamma", "null texts"), ("gamma", "a bit flipped")}
"""gamma reads the margins' columns only."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PAIRS and one of FEEDBACK, each with one part."""
    made = tmp_path_factory.mktemp("good")
    for name in ("pairs", "feedback"):
        pairs_folder(made / name, graded(20), kind="human", scale=(1, 9), split=(1, 0, 0), feedback_only=name == "feedback")
    (made / "model").mkdir()
    return made


@pytest.mark.parametrize(
    ("kind", "line", "damage"),
    [
        (kind, line, damage)
        for kind, lines in (("pairs", PAIRS), ("feedback", FEEDBACK))
        for line in lines
        for damage in DAMAGES
        if (line.split()[0], damage) not in NOT_READ
    ],
)
def test_a_damaged_part_is_named_with_its_fault(
    kind: str,
    line: str,
    damage: str,
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if line.split()[0] in ("train", "evaluate"):
        pytest.importorskip("torch", reason="models train on this machine")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    data = Path(shutil.copytree(good / kind, tmp_path / "data"))
    part = data / ("train" if kind == "pairs" else "feedback") / "part-00000.parquet"
    harm, told = DAMAGES[damage]
    harm(part)
    told = OTHERWISE.get((line.split()[0], damage), told)
    if line.startswith("argilla"):  # the command asks for a server first
        with pytest.raises(UserError) as error:
            read_items(data, PushOptions())
        message = str(error.value)
    else:
        message = refused(line.format(data, out=tmp_path, model=good / "model").split(), tmp_path, capsys)
    assert told in message and str(data) in message, message


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["pairs", "feedback"])
def test_validate_reports_a_damaged_part_as_a_failed_check(
    kind: str, damage: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(good / kind, tmp_path / "data"))
    harm, told = DAMAGES[damage]
    harm(data / ("train" if kind == "pairs" else "feedback") / "part-00000.parquet")
    assert run(["validate", str(data), "--json"]) == 2
    checks = json.loads(capsys.readouterr().out)["checks"]
    told = told.removeprefix("row 1 has ").partition(" (")[0]
    assert any(check["status"] == "fail" and told in check["message"] for check in checks), checks
