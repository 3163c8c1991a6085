"""Files into rows: chunks, line numbers, and what a damaged file costs."""

import gzip
import os
import tempfile
import threading
import time
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from command import graded
from folders import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.pipeline import BuildOptions, build
from mmpo.pipeline.build import run, workers
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import digest, input_bytes, plan, read_manifest, resolve_inputs, rows, split_lines, table
from mmpo.pipeline.storage.files import Digests

ROWS = [{"a": 1}, {"a": "U+2028 \u2028 stays inside"}, {"a": None}]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)


def read(path: Path, format: str = "jsonl", chunk_bytes: int = 16 << 20) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    """All rows and all rejects of a file, in order."""
    rejects: list[tuple[int, str]] = []
    found = [
        item
        for chunk in plan(resolve_inputs([path], format), chunk_bytes)
        for item in rows(chunk, lambda number, reason, evidence: rejects.append((number, reason)))
    ]
    return found, rejects


FORMATS = {".csv": "csv", ".tsv": "csv", ".csv.gz": "csv", ".parquet": "parquet", ".arrow": "parquet"}
COMPRESS = {".gz": gzip.compress, ".zst": zstandard.compress}


def written(path: Path, data: list[dict[str, Any]], arrow: Any = pa.ipc.new_stream) -> Path:
    """Rows as a file of the kind that its name says; what is compressed as two members end to end, which are one file."""
    plain = path.with_suffix("") if path.suffix in COMPRESS else path
    if path.suffix == ".arrow":
        made = pa.Table.from_pylist(data)
        with pa.OSFile(str(path), "wb") as sink, arrow(sink, made.schema) as out:
            out.write_table(made)
    else:
        write_rows(plain, data)
    if plain != path:
        raw = plain.read_bytes()
        path.write_bytes(b"".join(map(COMPRESS[path.suffix], (raw[:30], raw[30:]))))
    return path


json_values = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=6))
file_lines = st.one_of(
    st.dictionaries(st.sampled_from("ab"), json_values, max_size=2).map(orjson.dumps),
    st.sampled_from([b"", b"  ", b"\r", b"[1]", b"{broken", b'{"a": "\xff"}', b'{"a": NaN}', '{"a": "\u2028"}'.encode()]),
)


@settings(max_examples=150, deadline=None)
@given(content=st.lists(file_lines, max_size=12), chunk_bytes=st.integers(1, 40), last=st.booleans())
def test_any_chunk_size_gives_the_same_rows_and_numbers(content: list[bytes], chunk_bytes: int, last: bool) -> None:
    raw = b"\n".join([b'{"first": 1}', *content]) + (b"\n" if last else b"")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(raw)
        whole, small = read(path), read(path, chunk_bytes=chunk_bytes)
        chunks = plan(resolve_inputs([path], "jsonl"), chunk_bytes)
        packed = Path(folder) / "rows.jsonl.gz"
        packed.write_bytes(gzip.compress(raw))
        stream = read(packed)
    assert repr(small) == repr(whole) == repr(stream)  # repr: NaN is not equal to itself
    assert b"".join(raw[chunk.offset : chunk.offset + chunk.length] for chunk in chunks) == raw
    numbers = [number for number, _ in whole[0]] + [number for number, _ in whole[1]]
    lines = raw.split(b"\n")
    assert sorted(numbers) == [number for number, line in enumerate(lines, 1) if line.strip()]


@given(raw=st.binary(max_size=40).map(lambda b: b.replace(b"x", b"\n")), cuts=st.lists(st.integers(0, 40)))
def test_lines_do_not_depend_on_blocks(raw: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parts = [raw[a:b] for a, b in pairwise(edges)]
    expected = raw.split(b"\n")
    assert list(split_lines(iter(parts))) == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize(
    ("name", "raw", "expected", "bad"),
    [
        # Only newlines end a line, and a mark at the start is no text.
        ("rows.jsonl", b"\xef\xbb\xbf" + LINES, [(1, ROWS[0]), (2, ROWS[1]), (3, ROWS[2])], []),
        # A bad line costs one line.
        ("bad.jsonl",
         b'{"a": 1}\n{"a": \n"text"\n{"a": "\xff\xfe"}\n\n{"a": 2}\n' + b"[" * 100_000 + b"\n{}",
         [(1, {"a": 1}), (6, {"a": 2}), (8, {})],
         [(2, "malformed_json"), (3, "not_an_object"), (4, "invalid_utf8"), (7, "malformed_json")]),
        # Values that JSON does not have reach the checks of values.
        ("no.jsonl", b'{"a": NaN}\n{"a": "\\ud800"}\n', [(1, {"a": float("nan")}), (2, {"a": "\ud800"})], []),
        # Rows of CSV carry the line on which they begin.
        ("rows.csv",
         '\ufeffa,b\r\n1,"two\nlines"\r\n2\n\n3,é\n4,\u2028\n'.encode() + b"5,\xff\n6,\n",
         [(2, {"a": "1", "b": "two\nlines"}), (6, {"a": "3", "b": "é"}), (7, {"a": "4", "b": "\u2028"}),
          (9, {"a": "6", "b": None})],
         [(4, "wrong_number_of_cells"), (8, "invalid_utf8")]),
        ("long.csv", b"a;b\n" + b"x" * 200_000 + b";1\n", [(2, {"a": "x" * 200_000, "b": "1"})], []),
        ("rows.tsv", b"a\tb,c\n1\t2,3\n", [(2, {"a": "1", "b,c": "2,3"})], []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_lines_of_text(tmp_path: Path, name: str, raw: bytes, expected: list[tuple[int, Any]], bad: list[tuple[int, str]]) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    found, rejects = read(path, FORMATS.get(path.suffix, "jsonl"))
    assert repr(found) == repr(expected) and rejects == bad  # repr: NaN is not equal to itself


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    data = [{"a": "x", "b": [{"role": "user", "content": "hi"}]}, {"a": "y", "b": []}]
    path = written(tmp_path / f"rows{suffix}", data)
    assert read(path, FORMATS.get(suffix, "jsonl")) == ([(1, data[0]), (2, data[1])], [])


PACKED = gzip.compress(LINES * 50, mtime=0)  # it is in the name of a test, which processes side by side must give alike


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        ("rows.csv", b"", "empty"),
        ("rows.csv", b"a,a\n1,2\n", "occur twice"),
        ("rows.csv", "a,b\n1,2\n".encode("utf-16-le"), "utf-16-le"),
        ("rows.csv", b'a,b\n1,"open\n2,3\n', "line 2 never ends"),
        ("rows.jsonl.gz", PACKED[:-6] + bytes([PACKED[-6] ^ 0xFF]) + PACKED[-5:], "damaged"),  # the checksum
    ],
)
def test_what_can_not_be_read_is_told(tmp_path: Path, name: str, raw: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UserError, match=told):
        read(path, FORMATS.get(path.suffix, "jsonl"))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".parquet", ".arrow", ".json"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"rows{suffix}", [{"a": f"{i} {i * 7919 % 1000}"} for i in range(5000)], pa.ipc.new_file)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"rows\." + suffix.split(".")[1]):
            read(path, FORMATS.get(suffix, "jsonl"))


def test_folders_mix_files_and_leave_out_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.jsonl", "deep/a.jsonl", ".secret.jsonl", ".hidden/c.jsonl", "manifest.json", "dataset_info.json"):
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / "c.csv").write_text("a\n1\n")
    (tmp_path / "README.md").write_text("about")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rejects.parquet")

    def names(format: str, *paths: str) -> list[str]:
        given = [tmp_path / path for path in paths or ("",)]
        return [str(Path(file.path).relative_to(tmp_path)) for file in resolve_inputs(given, format)]

    assert names("ultrafeedback") == ["b.jsonl", "c.csv", "deep/a.jsonl"]
    assert names("jsonl") == ["b.jsonl", "deep/a.jsonl"]
    assert names("csv") == ["c.csv"]
    assert names("jsonl", "**/*.jsonl", "b.jsonl", "") == ["b.jsonl", "deep/a.jsonl"]
    with pytest.raises(UserError, match=r"no data file for format 'parquet'; it holds files of .*\.csv"):
        names("parquet")


def test_what_is_not_there_and_what_is_something_else(tmp_path: Path) -> None:
    for name in ("named.csv", "rows.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows.json")
    for name, format, told in (
        ("named.csv", "csv", "the file holds JSON; try --format jsonl"),
        ("rows.jsonl", "csv", "try --format jsonl"),
        ("rows.json", "shp", "Parquet"),
        *((name, "jsonl", r"no such file|no file matches") for name in ("none.jsonl", "none", "*.zst")),
    ):
        with pytest.raises(UserError, match=told):
            resolve_inputs([tmp_path / name], format)


def test_a_hub_dataset_is_read_from_the_files_that_datasets_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "rows.jsonl").write_text('{"a": "x"}\n{"a": "y"}\n')
    real = datasets.load_dataset

    def load(name: str, split: str | None = None) -> Any:
        assert name == "somebody/something"
        return real("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"), split=split)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    files = resolve_inputs(["somebody/something"], "trl")
    assert [file.name for file in files] == ["somebody/something:train"]
    found = [row for chunk in plan(files) for row in rows(chunk, lambda *_: None)]
    assert found == [(1, {"a": "x"}), (2, {"a": "y"})]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="as a Hub dataset"):
        resolve_inputs(["somebody/else"], "trl")


def test_parquet_chunks_are_row_groups_and_tables(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": [1, 2, 3]}), path, row_group_size=2)
    chunks = plan(resolve_inputs([path], "parquet"))
    assert [(chunk.offset, chunk.length, chunk.first_row) for chunk in chunks] == [(0, 2, 1), (1, 1, 3)]
    assert [table(chunk).to_pylist() for chunk in chunks] == [[{"a": 1}, {"a": 2}], [{"a": 3}]]
    assert [number for chunk in chunks for number, _ in rows(chunk, lambda *_: None)] == [1, 2, 3]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "arrow", "stream.arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str) -> None:
    """Readers differ in which they take: of JSON the last, of Parquet none. Below a column a repeated key is nobody's grade."""
    path, twice = tmp_path / f"rows.{suffix}", pa.table([["q"], [1.0], [3.0]], names=["prompt", "score", "score"])
    text = b'{"prompt": "q", "score": 1, "score": 3}'
    if suffix == "parquet":
        pq.write_table(twice, path)
    elif suffix.endswith("arrow"):
        kind = pa.ipc.new_stream if suffix.startswith("stream") else pa.ipc.new_file
        with kind(path, twice.schema) as writer:
            writer.write_table(twice)
    else:
        texts = {"csv": b"prompt,score,score\nq,1,3\n", "json": b"[" + text + b"]", "jsonl.gz": gzip.compress(text + b"\n")}
        path.write_bytes(texts.get(suffix, text))
    with pytest.raises(UserError, match=r"twice|two columns|two values") as error:
        [list(rows(chunk, lambda *_: None)) for chunk in plan(resolve_inputs([path], suffix.partition(".")[0]))]
    assert "score" in str(error.value) and path.name in str(error.value)


def test_keys_of_what_is_inside_a_column_may_repeat(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "extra": {"a": 1, "a": 2}}\n')
    assert [row for chunk in plan(resolve_inputs([path], "jsonl")) for _, row in rows(chunk, lambda *_: None)] == [
        {"prompt": "q", "extra": {"a": 2}}
    ]


def test_digest_and_size_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    files = resolve_inputs([tmp_path / "rows.jsonl"], "jsonl")
    assert input_bytes(files) == len(LINES)
    assert digest(files[0].path) == blake2b(LINES, digest_size=32).hexdigest()


@pytest.mark.parametrize("begun", [True, False])
def test_digests_beside_other_work_are_those_of_the_files(tmp_path: Path, begun: bool) -> None:
    contents = {str(tmp_path / str(number)): bytes([number]) * size for number, size in enumerate((0, 5, (4 << 20) + 1, 9 << 20))}
    for path, content in contents.items():
        Path(path).write_bytes(content)
    gone = str(tmp_path / "gone")
    with Digests([gone, *contents]) as digests:
        if begun:
            digests.begin()
        assert {path: digests.of(path) for path in contents} == {
            path: blake2b(c, digest_size=32).hexdigest() for path, c in contents.items()
        }
        with pytest.raises(FileNotFoundError):
            digests.of(gone)


def test_a_build_that_ends_early_waits_for_no_digest(tmp_path: Path) -> None:
    (path := tmp_path / "large").touch()
    os.truncate(path, 64 << 30)  # a minute and more
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Digests([str(path)]) as digests:
        digests.begin()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 5
    assert not [one for one in threading.enumerate() if "_take" in one.name]


def test_a_build_of_several_parts_names_the_digests_of_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run, workers):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    begun, plain = [], Digests.begin
    monkeypatch.setattr(Digests, "begin", lambda self: (begun.append(True), plain(self))[1])
    given = [write_rows(tmp_path / f"{number}.jsonl", graded(40 + number)) for number in range(2)]
    build(given, tmp_path / "out", options=BuildOptions(format="jsonl"))
    assert begun
    inputs = {Path(one["name"]).name: one["digest"] for one in read_manifest(tmp_path / "out")["inputs"]}
    assert inputs == {path.name: blake2b(path.read_bytes(), digest_size=32).hexdigest() for path in given}
