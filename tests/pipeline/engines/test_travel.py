"""Tasks on machines of their own: paths and files that travel, folders that vanish, and addresses where no Ray is. No Ray runs here."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from command import mmpo, refused
from folders import contents

from mmpo.pipeline import BuildOptions, UserError
from mmpo.pipeline.engines import ENGINES
from mmpo.pipeline.engines.held import held_folder
from mmpo.pipeline.engines.ray import check_answers
from mmpo.pipeline.engines.travel import ATTEMPTS, OUTPUT, SCRATCH, TOKEN, Parcel, at_work, packed, unpacked
from mmpo.pipeline.storage import PartWriter, remove


def paired(folder: Path, scratch: Path, given: Path, number: int) -> dict[str, Any]:
    """A stage as others are: reads one file, writes into both folders, and spills for two shards of three."""
    text = given.read_text()
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / f"{number}.parquet").write_text(text)
    (scratch / "rejects").write_text(text.upper())
    for shard in (0, 2):
        (scratch / f"{shard:05d}-here-1.spill").write_text(f"{text} {shard}")
    return {"spilled": scratch / "00002-here-1.spill", "files": [folder / "train" / f"{number}.parquet"], "elsewhere": Path("/etc")}


@pytest.mark.parametrize("sees", [True, False])
def test_what_a_task_writes_comes_back(tmp_path: Path, sees: bool) -> None:
    homes = tmp_path / "out", tmp_path / "out" / "scratch"
    homes[SCRATCH].mkdir(parents=True)
    (homes[SCRATCH] / "given").write_text("a text")
    (homes[OUTPUT] / ATTEMPTS).mkdir()
    (homes[OUTPUT] / TOKEN).write_text("token" if sees else "of another run")
    data, places = packed((paired, (*homes, homes[SCRATCH] / "given", 7)), homes)
    assert set(places) == {(OUTPUT, "."), (SCRATCH, "."), (SCRATCH, "given")}
    parcel = Parcel(data, os.getcwd(), [(OUTPUT, "."), (SCRATCH, ".")], {(SCRATCH, "given"): b"a text"}, [])
    before = contents(homes[OUTPUT])
    found, *left = at_work(parcel, str(homes[OUTPUT]), "token", str(tmp_path), 3)
    assert [None if one is None else one.to_pybytes() for one in left] == [b"a text 0", None, b"a text 2"]
    files = {place: content.to_pybytes() for place, content in found.files.items()}
    written = {(OUTPUT, "train/7.parquet"): b"a text"}
    assert files == {(SCRATCH, "rejects"): b"A TEXT"} | ({} if sees else written)
    if sees:
        assert (homes[OUTPUT] / ATTEMPTS / found.attempt / "train" / "7.parquet").read_bytes() == b"a text"
    else:
        assert found.attempt is None
        assert contents(homes[OUTPUT]) == before
    assert not list(tmp_path.glob("mmpo-task-*")), "its own folder is gone"
    result = unpacked(found.data, lambda place: homes[place[0]] / place[1])
    assert result == {
        "spilled": homes[SCRATCH] / "00002-here-1.spill",
        "files": [homes[OUTPUT] / "train" / "7.parquet"],
        "elsewhere": Path("/etc"),
    }


def written_late(folder: Path, out: str, before: bool) -> None:
    """A stage whose output's folder goes, as with a head that is lost, before it writes or between two of its files."""
    writer = PartWriter(folder / "train", "part", {})
    if not before:
        writer.write(pa.table({"prompt_id": ["a"]}))
        writer.close()
    remove(Path(out))
    writer.write(pa.table({"prompt_id": ["b"]}))


@pytest.mark.parametrize("when", ["before it begins", "before it writes", "between two files"])
def test_a_task_does_not_bring_back_a_folder_that_is_gone(tmp_path: Path, when: str) -> None:
    homes = tmp_path / "own" / "out", tmp_path / "own" / "out" / "scratch"
    homes[SCRATCH].mkdir(parents=True)
    (homes[OUTPUT] / TOKEN).write_text("token")
    if when != "before it begins":  # as where it has read the token, and the folder goes right then
        (homes[OUTPUT] / ATTEMPTS).mkdir()
    data, _ = packed((written_late, (homes[OUTPUT], str(homes[OUTPUT]), when == "before it writes")), homes)
    with pytest.raises(FileNotFoundError):
        at_work(Parcel(data, os.getcwd(), [(OUTPUT, ".")], {}, []), str(homes[OUTPUT]), "token", str(tmp_path), 0)
    remove(homes[OUTPUT])
    assert list(tmp_path.rglob("*")) == [tmp_path / "own"]


def test_spilled_files_are_laid_down_where_a_task_looks_for_them(tmp_path: Path) -> None:
    homes = tmp_path / "out", tmp_path / "scratch"
    for home in homes:
        home.mkdir()
    spilled = homes[SCRATCH] / "spill" / "00001-003-000009.spill"
    data, places = packed((Path.read_bytes, (spilled,)), homes)
    assert places == [(SCRATCH, "spill/00001-003-000009.spill")]
    found = at_work(Parcel(data, os.getcwd(), [], {}, places), str(homes[OUTPUT]), "", str(tmp_path), 0, b"of another task")
    assert pickle.loads(found.data) == b"of another task"
    assert found.files == {}, "what came with a task does not go back"


HOLD = """
import sys, time
from mmpo.pipeline.engines.held import held_folder
with held_folder("held-", sys.argv[1]) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_folders_of_killed_processes_go_and_others_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        other = Path(process.stdout.readline().strip())
        try:
            with held_folder("held-", tmp_path) as own:
                assert sorted(tmp_path.iterdir()) == sorted([other, own])
        finally:
            process.send_signal(signal.SIGKILL)
    with held_folder("held-", tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert not list(tmp_path.iterdir())


def test_a_link_of_such_a_name_is_not_followed(tmp_path: Path) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "temporary"
    for folder in (elsewhere, place):
        folder.mkdir()
    (elsewhere / "lock").touch()
    (elsewhere / "kept").touch()
    (place / "held-link").symlink_to(elsewhere)
    with held_folder("held-", place):
        pass
    assert sorted(path.name for path in elsewhere.iterdir()) == ["kept", "lock"] and (place / "held-link").is_symlink()


def test_what_could_not_go_is_found_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a process of Ray still writes: for once nothing below the folder can be removed."""
    with held_folder("held-", tmp_path) as left:
        (left / "ray").mkdir()
        monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    monkeypatch.undo()
    assert (left / "ray").is_dir()
    with held_folder("held-", tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


@contextmanager
def answering(reply: bytes | None) -> Iterator[str]:
    """The address of a server that says this to whoever connects; None: nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if reply is not None:

            def serve() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(64)
                    connection.sendall(reply)

            threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_addresses_where_no_ray_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpo.pipeline.engines.ray.ANSWER_SECONDS", 0.3)
    for reply, part in ((b"HTTP/1.1 505 no\r\n\r\n", "something else than Ray"), (None, "no Ray is there (timed out)")):
        with answering(reply) as address, pytest.raises(UserError) as told:
            check_answers(address, f"--ray-address {address}")
        assert part in str(told.value)
        assert address in str(told.value)
    with answering(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address:
        check_answers(address, "")
    with pytest.raises(UserError, match=r"no Ray is there.*ray status on its head"):
        check_answers(address, "--ray-address")
    for given in ("nonsense", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"):
        with pytest.raises(UserError, match=r"HOST:PORT|no Ray is there"):
            check_answers(given, f"--ray-address {given}")


def test_the_address_of_a_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    for given in ("ray://127.0.0.1:10001", "http://127.0.0.1:8265"):
        with pytest.raises(UserError, match="no address of a cluster's head; give HOST:PORT"):
            ENGINES["ray"](None, given).__enter__()


def test_engines_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"engine: .*'local' or 'ray'"):
        BuildOptions(format="jsonl", engine="spark")
    words = ["build", str(tmp_path), "--format", "jsonl", "--out", str(tmp_path / "out"), "--ray-address", "127.0.0.1:6379"]
    assert "--ray-address 127.0.0.1:6379 goes with --engine ray" in refused(words, tmp_path, capsys)


def test_without_the_package_it_says_which(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('as if it were not there')")
    (tmp_path / "grades.jsonl").write_text('{"prompt": "a", "completion": "b", "score": 1}\n')
    words = [
        "build",
        tmp_path / "grades.jsonl",
        "--format",
        "jsonl",
        "--scale",
        "1:10",
        "--out",
        tmp_path / "out",
        "--engine",
        "ray",
    ]
    done = mmpo(*words, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert 'error: --engine ray needs the package ray: pip install "mmpo[ray]"' in done.stderr
    assert not (tmp_path / "out").exists()
