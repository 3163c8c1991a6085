"""Inputs and datasets in an object store: read as if they lay here, written whole or not at all, whatever the store and the network do."""

import gzip
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import graded, mmpo, started, stopped, wait_for
from folders import contents, pairs_folder, write_rows
from object_store import FAILURES, Failing, Store, failing, free_port, running_store, variables

from mmpo.pipeline import BuildOptions, UserError, build, load_feedback, load_pairs, validate
from mmpo.pipeline.build import check_format, peek
from mmpo.pipeline.report import feedback_of, rejects
from mmpo.pipeline.storage import name_of, on_disk, read_manifest, replacing, url_of
from mmpo.pipeline.storage.objects import client, fetch, side_by_side

JSONL = BuildOptions(format="jsonl")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with running_store(tmp_path_factory.mktemp("store") / "said.txt") as running:
        running.files().create_dir("bucket")
        yield running


@pytest.fixture
def here(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This process looks at the store; a place of the test's own there. What is fetched is kept in the test's own folder."""
    for name, value in variables(store.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MMPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)
    return f"bucket/{tmp_path.name}"


@pytest.fixture
def proxy(here: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    """What stands between this process and the store; it fails nothing yet."""
    with failing(store, 0) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.url)
        yield before


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def count(folder: Path) -> int:
    """How many files a folder holds."""
    return sum(path.is_file() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"), (Path("s3://bucket/a"), "s3://bucket/a"), ("S3A://bucket/a", "s3://bucket/a"),
        ("gcs://bucket", "gs://bucket"), ("a/b", None), ("hub:owner/name", None), ("C:/rows", None), (Path("/s3:/x"), None),
    ],
)  # fmt: skip
def test_an_address_is_known_as_text_and_as_a_path(given: str | Path, url: str | None) -> None:
    assert url_of(given) == url
    assert name_of(given) == (url or str(given))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://key:secret@bucket/a", "credentials"), ("s3:///a", "no bucket"), ("https://example.com/rows.jsonl", "fetch the file first"),
        ("file:///rows.jsonl", "by its path alone"), ("hf://datasets/a/b", "hub:OWNER/NAME"), ("s4://bucket/a", "did you mean 's3'"),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_what_to_do(url: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as refused:
        build(url, tmp_path / "out", options=JSONL)
    assert "secret" not in str(refused.value)
    with pytest.raises(UserError, match="whole bucket" if url == "s3:///a" else told):  # as a Path it is s3://a
        build(write_rows(tmp_path / "r.jsonl", graded(4)), url, options=JSONL)


def test_work_side_by_side_keeps_its_order_and_ends_with_the_first_error() -> None:
    assert side_by_side([lambda n=n: n * n for n in range(50)], 7) == [n * n for n in range(50)]
    assert side_by_side([], 3) == []
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ValueError("the fourth")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="the fourth"):
        side_by_side([lambda n=n: work(n) for n in range(1000)], 2)
    assert len(begun) < 100


def test_ctrl_c_does_not_wait_for_what_hangs() -> None:
    hangs = threading.Event()
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side([hangs.wait], 1)
    assert time.monotonic() - began < 5
    hangs.set()


def test_inputs_are_read_as_if_they_lay_here(here: str, store: Store, tmp_path: Path) -> None:
    rows = graded(30)
    for name, part in (("a/one.jsonl", rows[:40]), ("a/b/two.jsonl.gz", rows[40:80]), ("three.jsonl", rows[80:])):
        content = gzip.compress(lines(part), mtime=0) if name.endswith(".gz") else lines(part)
        store.put(f"{here}/{name}", content)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    store.put(f"{here}/.hidden.jsonl", b"not read")
    store.put(f"{here}/notes.txt", b"not read")
    build(tmp_path / "in", tmp_path / "local", options=JSONL)
    expected = load_pairs(tmp_path / "local")
    for inputs in (
        [f"s3://{here}"],
        [f"s3://{here}/"],
        [f"s3://{here}/**/*.jsonl*"],
        [f"s3://{here}/a", f"s3://{here}/three.jsonl"],
    ):
        build(inputs, tmp_path / "out", options=JSONL)
        assert load_pairs(tmp_path / "out").equals(expected)
    table, why = feedback_of(tmp_path / "out")  # read again for its page
    assert why == "" and table is not None and table.num_rows == 30
    entries = read_manifest(tmp_path / "out")["inputs"]
    assert [one["name"] for one in entries] == [
        f"s3://{here}/{name}" for name in ("a/b/two.jsonl.gz", "a/one.jsonl", "three.jsonl")
    ]
    assert [one["bytes"] for one in entries] == [len(store.read(one["name"].removeprefix("s3://"))) for one in entries]
    assert all(one["etag"] and len(one["digest"]) == 64 for one in entries)
    with pytest.raises(UserError, match="no object matches"):
        build(f"s3://{here}/*.csv", tmp_path / "out", options=JSONL)
    with pytest.raises(UserError, match=r"holds no data file for format 'csv'; it holds files of .gz, .jsonl, .txt"):
        build(f"s3://{here}", tmp_path / "out", options=BuildOptions(format="csv"))


def test_an_object_that_changed_is_read_anew_and_one_that_did_not_is_not(
    here: str, store: Store, tmp_path: Path, proxy: Failing
) -> None:
    store.put(f"{here}/r.jsonl", lines(graded(10)))
    read: list[str] = []
    proxy.before = lambda method, path: read.append(path) if method == "GET" and path.endswith("r.jsonl") else None
    for _ in range(2):
        build(f"s3://{here}/r.jsonl", tmp_path / "out", options=JSONL)
    assert len(read) == 1
    store.put(f"{here}/r.jsonl", lines(graded(12)))
    assert build(f"s3://{here}/r.jsonl", tmp_path / "out", options=JSONL)["prompts"] == 12


def test_a_look_fetches_only_the_beginning_of_a_large_object(
    here: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lines(graded(4000))
    monkeypatch.setattr(fetch, "HEAD_BYTES", 100_000)
    store.put(f"{here}/r.jsonl", content)
    store.put(f"{here}/r.json", json.dumps([json.loads(line) for line in content.splitlines()]).encode())
    assert len(content) > 200_000
    monkeypatch.setattr(sys.modules["mmpo.pipeline.build.peek"], "PEEKED_CHARS", 50_000)
    for name in ("r.jsonl", "r.json"):  # an array can only be read whole
        assert peek([f"s3://{here}/{name}"], JSONL)["file"] == f"s3://{here}/{name}"
    kept = sorted(path.stat().st_size for path in (tmp_path / "cache/inputs").rglob("r.json*"))
    assert kept[:2] == [100_000, 100_000] and len(kept) == 3
    assert check_format([f"s3://{here}/r.jsonl"], None) == "jsonl"
    assert build(f"s3://{here}/r.jsonl", tmp_path / "out", options=JSONL)["prompts"] == 4000


def test_a_dataset_goes_there_and_comes_back_byte_by_byte(here: str, store: Store, tmp_path: Path) -> None:
    rows, url = write_rows(tmp_path / "r.jsonl", graded(40)), f"s3://{here}/some/pairs"
    build(rows, tmp_path / "local", options=JSONL)
    summary = build(rows, url, options=JSONL)
    assert summary["out"] == url and contents(on_disk(url)) == contents(tmp_path / "local")
    assert contents(on_disk(Path(url))) == contents(tmp_path / "local")
    assert validate(url)["ok"] and rejects(Path(url))["reasons"] == rejects(tmp_path / "local")["reasons"]
    assert load_pairs(url).equals(load_pairs(tmp_path / "local"))
    names = store.names(f"{here}/some/pairs")
    assert len(names) == count(tmp_path / "local") and "manifest.json" in names
    assert not (tmp_path / "s3:").exists() and not list((tmp_path / "cache/uploads").rglob("*.parquet"))
    build(url, tmp_path / "again", options=BuildOptions(format="trl"))
    assert load_pairs(tmp_path / "again").num_rows == load_pairs(tmp_path / "local").num_rows
    build(rows, f"s3://{here}/feedback", options=BuildOptions(format="jsonl", feedback_only=True))
    assert load_feedback(f"s3://{here}/feedback").num_rows == 40
    build(f"s3://{here}/feedback", tmp_path / "paired", options=BuildOptions(format="feedback"))
    assert load_pairs(tmp_path / "paired").drop_columns("source").equals(load_pairs(url).drop_columns("source"))


def test_a_copied_folder_is_a_dataset_too(here: str, store: Store, tmp_path: Path) -> None:
    pairs_folder(tmp_path / "local", graded(20))
    for path in (path for path in (tmp_path / "local").rglob("*") if path.is_file()):
        store.put(f"{here}/copied/{path.relative_to(tmp_path / 'local')}", path.read_bytes())
    assert contents(on_disk(f"s3://{here}/copied")) == contents(tmp_path / "local")
    build(tmp_path / "local.jsonl", f"s3://{here}/copied", options=BuildOptions(format="jsonl", min_margin=1))
    assert len(store.names(f"{here}/copied")) == count(on_disk(f"s3://{here}/copied"))


def test_only_a_dataset_of_ours_is_replaced_and_nothing_of_it_is_left(here: str, store: Store, tmp_path: Path) -> None:
    rows, url = write_rows(tmp_path / "r.jsonl", graded(40)), f"s3://{here}/pairs"
    build(rows, url, options=JSONL)
    first = store.names(f"{here}/pairs")
    build(rows, url, options=BuildOptions(format="jsonl", min_margin=2))
    second = store.names(f"{here}/pairs")
    shared = {name.partition(".mmpo-")[0] for name in set(first) & set(second)}
    assert len(first) == len(second) and shared == {"manifest.json", "rejects"}  # nothing was left out either time
    assert min(load_pairs(url)["quality_margin"].to_pylist()) >= 2
    store.put(f"{here}/pairs/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"also holds notes.txt, which mmpo did not write"):
        build(rows, url, options=JSONL)
    store.put(f"{here}/other/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"holds something else: notes.txt"):
        build(rows, f"s3://{here}/other", options=JSONL)
    with pytest.raises(UserError, match="is an object"):
        build(rows, f"s3://{here}/other/notes.txt", options=JSONL)
    with pytest.raises(UserError, match="whole bucket"):
        build(rows, "s3://bucket", options=JSONL)
    with pytest.raises(UserError, match=r"the input itself|also holds"):
        build(url, url, options=BuildOptions(format="trl"))
    assert store.names(f"{here}/pairs") == sorted([*second, "notes.txt"])


def test_what_another_wrote_meanwhile_stands(here: str, store: Store, tmp_path: Path) -> None:
    rows, url = write_rows(tmp_path / "r.jsonl", graded(20)), f"s3://{here}/pairs"
    other = BuildOptions(format="jsonl", min_margin=2)
    with pytest.raises(UserError, match="another dataset came there meanwhile"), replacing(Path(url)) as folder:
        build(rows, tmp_path / "local", options=JSONL)
        shutil.copytree(tmp_path / "local", folder, dirs_exist_ok=True)
        build(rows, url, options=other)
    build(rows, tmp_path / "other", options=other)
    assert contents(on_disk(url)) == contents(tmp_path / "other")


def test_what_is_no_longer_what_its_manifest_says_is_refused(here: str, store: Store, tmp_path: Path) -> None:
    url = f"s3://{here}/pairs"
    build(write_rows(tmp_path / "r.jsonl", graded(40)), url, options=JSONL)
    part = next(name for name in store.names(f"{here}/pairs") if name.startswith("train/"))
    content = store.read(f"{here}/pairs/{part}")
    store.put(f"{here}/pairs/{part}", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{part} is not what its manifest says"):
        load_pairs(url)
    assert not list((tmp_path / "cache/datasets").rglob("*.parquet"))
    store.files().delete_file(f"{here}/pairs/{part}")
    with pytest.raises(UserError, match="no such object"):
        load_pairs(url)


@pytest.mark.parametrize("every", [10, pytest.param(3, marks=pytest.mark.slow)])
def test_a_store_that_fails_every_so_many_requests_loses_nothing(
    every: int, here: str, store: Store, proxy: Failing, tmp_path: Path
) -> None:
    rows = graded(60)
    for part in range(12):
        store.put(f"{here}/in/{part:02d}.jsonl", lines(rows[part * 20 : (part + 1) * 20]))
    proxy.every = every
    build(f"s3://{here}/in", f"s3://{here}/out", options=JSONL)
    proxy.every = 0
    build(f"s3://{here}/in", tmp_path / "local", options=JSONL)
    assert contents(on_disk(f"s3://{here}/out")) == contents(tmp_path / "local")
    assert len(store.names(f"{here}/out")) == count(tmp_path / "local")
    assert set(proxy.failed) == set(FAILURES)


def refusals(here: str, store: Store, tmp_path: Path) -> Iterator[tuple[list[str], str]]:
    """Commands that a store refuses, and what they say."""
    rows = write_rows(tmp_path / "r.jsonl", graded(4))
    for address in ("nowhere/x.jsonl", "nowhere"):
        yield ["build", f"s3://{address}", "--format", "jsonl", "--out", str(tmp_path / "o")], "there is no bucket 'nowhere'"
    yield ["build", str(rows), "--format", "jsonl", "--out", "s3://nowhere/x"], "there is no bucket 'nowhere'"
    yield ["validate", "s3://nowhere/x"], "there is no bucket 'nowhere'"
    yield ["validate", f"s3://{here}/none"], "no dataset of mmpo (nothing is there)"
    yield (
        ["build", f"s3://{here}/none", "--format", "jsonl", "--out", str(tmp_path / "o")],
        "no such object, and none whose key begins",
    )


def test_what_is_not_there_is_named(here: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmpo.cli.main import run

    for words, told in refusals(here, store, tmp_path):
        assert run(words) == 2
        assert told in capsys.readouterr().err, words
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_a_store_that_refuses_is_asked_once_and_nothing_secret_is_said(
    code: str, here: str, proxy: Failing, tmp_path: Path
) -> None:
    proxy.before = lambda method, path: code
    rows = write_rows(tmp_path / "r.jsonl", graded(4))
    told = "have no right to it" if code == "AccessDenied" else "does not take the credentials"
    for source, out in ((f"s3://{here}/r.jsonl", str(tmp_path / "o")), (str(rows), f"s3://{here}/o")):
        began = time.monotonic()
        with pytest.raises(UserError, match=told) as refused:
            build(source, out, options=JSONL)
        assert "AWS_ACCESS_KEY_ID" in str(refused.value) and "testing" not in str(refused.value)
        assert time.monotonic() - began < 5


def test_a_bucket_that_may_be_read_and_not_written_is_known_before_the_work(
    here: str, proxy: Failing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["mmpo.pipeline.build.run"], "read_chunks", None)
    proxy.before = lambda method, path: "AccessDenied" if method in ("PUT", "POST") else None
    with pytest.raises(UserError, match="the store refuses writing"):
        build(write_rows(tmp_path / "r.jsonl", graded(4)), f"s3://{here}/o", options=JSONL)


def test_wrong_credentials_are_told_by_the_store_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_store(tmp_path / "said.txt", INITIAL_NO_AUTH_ACTION_COUNT="0") as strict:
        for name, value in variables(strict.url).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"s3://bucket/x.jsonl: the store does not take the credentials .*AWS_PROFILE"):
            build("s3://bucket/x.jsonl", tmp_path / "o", options=JSONL)


def test_a_store_that_is_not_there_is_given_up(here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(client, "TRIES", 1)
    with pytest.raises(
        UserError, match=r"can't be reached or fails .*; check the address, then try again \(the endpoint is http://127"
    ):
        build(f"s3://{here}/r.jsonl", tmp_path / "o", options=JSONL)


def test_a_disk_that_is_too_small_is_known_before(here: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(f"{here}/r.jsonl", lines(graded(4)))
    monkeypatch.setattr("mmpo.pipeline.storage.objects.cache.SPARE_BYTES", 1 << 60)
    with pytest.raises(UserError, match=r"bytes are to be fetched, and the disk has .* MMPO_CACHE"):
        build(f"s3://{here}/r.jsonl", tmp_path / "o", options=JSONL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "when"),
    [
        (signal.SIGKILL, "train/"),
        pytest.param(signal.SIGKILL, "manifest.json", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "train/", marks=pytest.mark.slow),
    ],
)
def test_an_upload_that_is_stopped_leaves_the_older_dataset_and_the_next_run_ends_it(
    by: int, when: str, here: str, store: Store, proxy: Failing, tmp_path: Path
) -> None:
    rows, url = write_rows(tmp_path / "r.jsonl", graded(40)), f"s3://{here}/pairs"
    build(rows, url, options=JSONL)
    older, first = contents(on_disk(url)), store.names(f"{here}/pairs")
    arrived, go = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> str | None:
        if method in ("PUT", "POST") and when in path:
            arrived.set()
            go.wait(60)
            return "AccessDenied"  # what was sent is lost with who sent it
        return None

    proxy.before = hold
    words = ("build", rows, "--format", "jsonl", "--min-margin", "2", "--out", url)
    done = stopped(*words, when=arrived.is_set, by=by)
    go.set()
    proxy.before = lambda method, path: None
    assert done.returncode == (130 if by == signal.SIGINT else -by)
    assert contents(on_disk(url)) == older and set(first) <= set(store.names(f"{here}/pairs"))
    assert len(store.names(f"{here}/pairs")) > len(first)
    again = mmpo(*words)
    assert again.returncode == 0, again.stderr
    build(rows, tmp_path / "local", options=BuildOptions(format="jsonl", min_margin=2))
    assert contents(on_disk(url)) == contents(tmp_path / "local")
    assert len(store.names(f"{here}/pairs")) == len(first)


def test_an_upload_without_an_end_is_no_dataset(here: str, store: Store, proxy: Failing, tmp_path: Path) -> None:
    rows, url = write_rows(tmp_path / "r.jsonl", graded(40)), f"s3://{here}/pairs"
    proxy.before = lambda method, path: "AccessDenied" if method == "PUT" and "manifest.json" in path else None
    with pytest.raises(UserError, match="refuses writing"):
        build(rows, url, options=JSONL)
    assert [name for name in store.names(f"{here}/pairs") if name.startswith("train/part-00000.mmpo-")]
    for read in (load_pairs, validate, lambda given: build(given, tmp_path / "o", options=BuildOptions(format="trl"))):
        with pytest.raises(UserError, match="an upload that did not come to its end"):
            read(url)
    proxy.before = lambda method, path: None
    build(rows, url, options=BuildOptions(format="jsonl", min_margin=2))
    assert len(store.names(f"{here}/pairs")) == count(on_disk(url))


def test_ctrl_c_while_an_input_is_fetched_ends_at_once(here: str, store: Store, proxy: Failing, tmp_path: Path) -> None:
    store.put(f"{here}/r.jsonl", lines(graded(40)))
    arrived, go = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "GET" and path.endswith("r.jsonl"):
            arrived.set()
            go.wait(60)

    proxy.before = hold
    with started("build", f"s3://{here}/r.jsonl", "--format", "jsonl", "--out", tmp_path / "o") as process:
        assert wait_for(arrived.is_set, process)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130 and time.monotonic() - began < 5
    go.set()
    assert not (tmp_path / "o").exists() and not list((tmp_path / "cache").rglob("r.jsonl"))


def test_the_memory_store_of_fsspec_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPO_CACHE", str(tmp_path / "cache"))
    rows = write_rows(tmp_path / "r.jsonl", graded(20))
    build(rows, "memory://bucket/pairs", options=JSONL)
    build(rows, tmp_path / "local", options=JSONL)
    assert contents(on_disk("memory://bucket/pairs")) == contents(tmp_path / "local")
