"""Whole-file writers where something else stands at the place: links, devices, pipes, and files that come meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from folders import contents, pairs_folder, write_rows

from mmpo.pipeline import BuildOptions, UserError, build, build_pairs, load_pairs, read_feedback, validate
from mmpo.pipeline.report import write_report
from mmpo.pipeline.storage import atomic_file, atomic_folder, identity
from mmpo.pipeline.tables import OPTIONAL_KEYS, keys_of


def texts(folder: Path) -> dict[str, str | None]:
    return {name: content if content is None else content.decode() for name, content in contents(folder).items()}


def test_of_a_link_the_target_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/old.txt").write_text("old")
    for name, target in (("file", "old.txt"), ("new", "new.txt"), ("folder", "folder")):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / target)
        with (atomic_folder if name == "folder" else atomic_file)(tmp_path / name) as temporary:
            (temporary / "part" if name == "folder" else temporary).write_text(name)
        assert (tmp_path / name).is_symlink()
    inside = {"old.txt": "file", "new.txt": "new", "folder": None, "folder/part": "folder"}
    assert texts(tmp_path / "elsewhere") == inside


def test_a_pipe_or_a_device_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with atomic_file(path) as temporary:
            temporary.write_text("whole")
        assert not path.is_file() and not temporary.exists()
    assert reader.communicate(timeout=10)[0] == "whole"
    code = "from mmpo.pipeline.storage import atomic_file\nwith atomic_file('/dev/stdout') as one: one.write_text('said')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "said"


@pytest.mark.parametrize("stood", [False, True])
def test_a_file_that_came_or_changed_meanwhile_is_left_alone(tmp_path: Path, stood: bool) -> None:
    path = tmp_path / "page.html"
    if stood:
        path.write_text("old")
    with pytest.raises(UserError, match=r"page\.html: a file came or changed there meanwhile"), atomic_file(path) as temporary:
        temporary.write_text("new")
        path.write_text("of somebody else")
    assert texts(tmp_path) == {"page.html": "of somebody else"}


def test_an_error_of_what_a_block_reads_is_no_error_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.txt\.source"), atomic_file(tmp_path / "a.txt"):
        (tmp_path / "a.txt.source").read_text()
    with pytest.raises(UserError, match=r"cannot write .*a\.txt"), atomic_file(tmp_path / "a.txt") as temporary:
        (temporary / "below").write_text("x")
    assert texts(tmp_path) == {}


def test_what_stood_may_be_asked_before_the_work_begins(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    stood = identity(path)
    path.write_text("of somebody else")
    with pytest.raises(UserError, match="meanwhile"), atomic_file(path, stood=stood) as temporary:
        temporary.write_text("new")
    with atomic_file(path, stood=identity(path)) as temporary:
        temporary.write_text("new")
    assert texts(tmp_path) == {"page.html": "new"}


def test_a_page_and_a_dataset_go_where_a_link_points(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{p}", "completion": f"a{c}", "score": c} for p in range(20) for c in range(2)]
    (tmp_path / "real").mkdir()
    for name in ("out", "page.html"):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
    pairs_folder(tmp_path / "out", rows)
    pairs_folder(tmp_path / "out", rows)  # over the older one
    write_report(tmp_path / "out", tmp_path / "page.html", [])
    assert (tmp_path / "out").is_symlink() and (tmp_path / "page.html").is_symlink()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["out", "page.html"]


@pytest.mark.parametrize("name", ["notes.txt", "train/notes.txt"])
def test_a_file_put_into_the_old_dataset_while_it_is_rebuilt_stays(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{p}", "completion": f"a{c}", "score": c} for p in range(20) for c in range(2)]
    out = pairs_folder(tmp_path / "out", rows)
    before = contents(out)

    def come(stage: str, done: int, of: int) -> None:
        (out / name).write_text("mine")

    with pytest.raises(UserError, match=f"also holds {name}"):
        build(tmp_path / "out.jsonl", out, options=BuildOptions(format="jsonl"), progress=come)
    assert contents(out) == {**before, name: b"mine"}
    (out / name).unlink()
    with pytest.raises(UserError, match="another dataset came there meanwhile"):
        build(
            tmp_path / "out.jsonl", out, options=BuildOptions(format="jsonl"), progress=lambda *_: pairs_folder(out, rows) and None
        )


@pytest.mark.parametrize(("completions", "dictionary"), [(2, False), (4, True)])
def test_texts_that_never_repeat_are_stored_in_small_pages(tmp_path: Path, completions: int, dictionary: bool) -> None:
    """Of two completions there is one pair a prompt; of four there are six, and each text stands in three of them."""
    rows = [{"prompt": f"q{p}", "completion": f"c{p}.{c}", "score": c} for p in range(50) for c in range(completions)]
    build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", options=BuildOptions("jsonl", split=(1, 0, 0)))
    [part] = (tmp_path / "out/train").glob("*.parquet")
    group = pq.ParquetFile(part).metadata.row_group(0)
    columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
    assert ("RLE_DICTIONARY" in columns["chosen.list.element.content"].encodings) == dictionary
    assert "RLE_DICTIONARY" in columns["kind"].encodings
    assert load_pairs(tmp_path / "out").num_rows == 50 * completions * (completions - 1) // 2 and validate(tmp_path / "out")["ok"]


@pytest.mark.parametrize("strategy", ["all", "adjacent"])
def test_texts_that_repeat_are_stored_once_and_stand_in_their_rows(strategy: str, tmp_path: Path) -> None:
    """Prompts share a reply and first messages, some replies have no model, some prompts have tools, calls or several messages."""
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [
        {
            "prompt": [*asked[: 1 + p % 2], {"role": "user", "content": f"q{p // 2}"}],
            "completion": "no"
            if c == 0
            else [{"role": "assistant", "content": f"{p}.{c}"} | ({"thinking": f"hm {c}"} if p == 3 else {})],
            "score": c * p % 7,
            **({"model": f"m{c}"} if c % 2 else {}),
            **({"tools": [{"name": "add"}]} if p > 4 else {}),
        }
        for p in range(8)
        for c in range(5)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    build(path, tmp_path / "out", options=BuildOptions("jsonl", split=(1, 0, 0), strategy=strategy))
    [part] = (tmp_path / "out/train").glob("*.parquet")
    found = pq.read_table(part).replace_schema_metadata(None)
    wanted = build_pairs(read_feedback(path, "jsonl"), strategy)  # texts of one a row
    order = [("prompt_id", "ascending"), ("chosen_id", "ascending"), ("rejected_id", "ascending")]
    assert found.num_rows == 8 * (10 if strategy == "all" else 4) and keys_of(found.schema) == (*OPTIONAL_KEYS[:2], "tools")
    assert found.sort_by(order).equals(wanted.sort_by(order).replace_schema_metadata(None))


@pytest.mark.parametrize(("step", "dictionary"), [(0, True), (1, False)])
def test_numbers_that_hardly_repeat_have_no_dictionary(step: int, dictionary: bool, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{p}", "completion": f"c{c}", "score": c * (1 + step * p)} for p in range(20) for c in range(2)]
    build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", options=BuildOptions("jsonl", split=(1, 0, 0)))
    group = pq.ParquetFile(tmp_path / "out/train/part-00000.parquet").metadata.row_group(0)
    columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
    assert ("RLE_DICTIONARY" in columns["quality_margin"].encodings) == dictionary
    assert sorted(load_pairs(tmp_path / "out")["quality_margin"].to_pylist()) == [1 + step * p for p in range(20)]
