"""Files into rows: chunks, line numbers, and what a damaged file costs."""

import gzip
import tempfile
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from folders import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import digest, input_bytes, plan, resolve_inputs, rows, split_lines, table

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


def write_arrow(path: Path, data: list[dict[str, Any]], writer: Any) -> None:
    made = pa.Table.from_pylist(data)
    with pa.OSFile(str(path), "wb") as sink, writer(sink, made.schema) as out:
        out.write_table(made)


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
    ("raw", "expected", "bad"),
    [
        # Only newlines end a line, and a mark at the start is no text.
        (b"\xef\xbb\xbf" + LINES, [(1, ROWS[0]), (2, ROWS[1]), (3, ROWS[2])], []),
        # A bad line costs one line.
        (
            b'{"a": 1}\n{"a": \n"text"\n{"a": "\xff\xfe"}\n\n{"a": 2}\n' + b"[" * 100_000 + b"\n{}",
            [(1, {"a": 1}), (6, {"a": 2}), (8, {})],
            [(2, "malformed_json"), (3, "not_an_object"), (4, "invalid_utf8"), (7, "malformed_json")],
        ),
        # Values that JSON does not have reach the checks of values.
        (b'{"a": NaN}\n{"a": "\\ud800"}\n', [(1, {"a": float("nan")}), (2, {"a": "\ud800"})], []),
    ],
    ids=["separators", "bad lines", "no JSON"],
)
def test_lines_of_json(tmp_path: Path, raw: bytes, expected: list[tuple[int, Any]], bad: list[tuple[int, str]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    found, rejects = read(path)
    assert repr(found) == repr(expected) and rejects == bad  # repr: NaN is not equal to itself


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    data = [{"a": "x", "b": [{"role": "user", "content": "hi"}]}, {"a": "y", "b": []}]
    raw = b"".join(orjson.dumps(row) + b"\n" for row in data)
    match suffix:
        case ".jsonl.gz":
            # Two members end to end are one file.
            path.write_bytes(gzip.compress(raw[:30]) + gzip.compress(raw[30:]))
        case ".jsonl.zst":
            path.write_bytes(zstandard.compress(raw[:30]) + zstandard.compress(raw[30:]))
        case ".arrow":
            write_arrow(path, data, pa.ipc.new_stream)
        case _:
            write_rows(path, data)
    format = "parquet" if suffix in (".parquet", ".arrow") else "jsonl"
    assert read(path, format) == ([(1, data[0]), (2, data[1])], [])


def test_csv_rows_carry_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffa,b\r\n1,"two\nlines"\r\n2\n\n3,é\n4,\u2028\n'.encode() + b"5,\xff\n6,\n")
    found, rejects = read(path, "csv")
    assert found == [
        (2, {"a": "1", "b": "two\nlines"}),
        (6, {"a": "3", "b": "é"}),
        (7, {"a": "4", "b": "\u2028"}),
        (9, {"a": "6", "b": None}),
    ]
    assert rejects == [(4, "wrong_number_of_cells"), (8, "invalid_utf8")]


def test_long_cells_and_other_separators(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "rows.csv").write_text(f"a;b\n{long};1\n")
    assert read(tmp_path / "rows.csv", "csv")[0] == [(2, {"a": long, "b": "1"})]
    (tmp_path / "rows.tsv").write_text("a\tb,c\n1\t2,3\n")
    assert read(tmp_path / "rows.tsv", "csv")[0] == [(2, {"a": "1", "b,c": "2,3"})]


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "empty"), ("a,a\n1,2\n", "occur twice"), ('a,b\n1,"open\n2,3\n', "line 2 never ends")],
)
def test_csv_that_can_not_be_read(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        read(path, "csv")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".parquet", ".arrow", ".json"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    raw = b"".join(orjson.dumps({"a": f"{i} {i * 7919 % 1000}"}) + b"\n" for i in range(2000))
    if suffix.endswith(".gz"):
        whole = gzip.compress(raw)
    elif suffix.endswith(".zst"):
        whole = zstandard.compress(raw)
    elif suffix == ".json":
        whole = b"[" + b",".join(raw.split(b"\n")[:-1]) + b"]"
    else:
        numbers = [{"a": i} for i in range(5000)]
        write_rows(path, numbers) if suffix == ".parquet" else write_arrow(path, numbers, pa.ipc.new_file)
        whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        format = {".csv.gz": "csv", ".parquet": "parquet", ".arrow": "parquet"}.get(suffix, "jsonl")
        with pytest.raises(UserError, match=r"rows\." + suffix.split(".")[1]):
            read(path, format)


def test_damage_inside_compressed_data_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = bytearray(gzip.compress(LINES * 50))
    whole[-6] ^= 0xFF  # the checksum
    path.write_bytes(whole)
    with pytest.raises(UserError, match="damaged"):
        read(path)


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
    path = tmp_path / "named.csv"
    path.write_bytes(LINES)
    with pytest.raises(UserError, match="the file holds JSON; try --format jsonl"):
        resolve_inputs([path], "csv")
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    with pytest.raises(UserError, match="try --format jsonl"):
        resolve_inputs([tmp_path / "rows.jsonl"], "csv")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows.json")
    with pytest.raises(UserError, match="Parquet"):
        resolve_inputs([tmp_path / "rows.json"], "shp")
    for missing in (tmp_path / "none.jsonl", tmp_path / "none", tmp_path / "*.zst"):
        with pytest.raises(UserError, match=r"no such file|no file matches"):
            resolve_inputs([missing], "jsonl")


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


def test_digest_and_size_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    files = resolve_inputs([tmp_path / "rows.jsonl"], "jsonl")
    assert input_bytes(files) == len(LINES)
    assert digest(files[0].path) == blake2b(LINES, digest_size=32).hexdigest()
