"""Files and folders that are whole or not there, what killed writers leave, and locks that die with their holder."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from folders import contents

from mmpo.pipeline import UserError
from mmpo.pipeline.storage import atomic_file, atomic_folder, file_lock, is_leftover

DEAD = 2**22 + 1  # above the largest process id that Linux gives out


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "in/a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == {"in": None, "in/a.txt": b"old"}


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_what_a_killed_process_of_the_same_id_left_is_removed(tmp_path: Path, writer: Any) -> None:
    """In a container every start may have the same process id, and the same first number."""
    with atomic_folder(tmp_path / "out") as one:
        start, _, number = one.name.rpartition("-")
    (tmp_path / "out").rmdir()
    for later in (1, 2):  # the names that this process gives next
        (tmp_path / f"{start}-{int(number) + later}").mkdir()
        (tmp_path / f"{start}-{int(number) + later}/part").touch()
    with writer(tmp_path / "out") as one:
        one.exists() or one.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_in_place_of_a_file_must_be_empty(tmp_path: Path) -> None:
    for name, work in (("file", lambda path: path.write_text("x")), ("folder", lambda path: path.mkdir())):
        (tmp_path / name).mkdir()
        with atomic_file(tmp_path / name, over_empty_folder=True) as temporary:
            work(temporary)
    assert contents(tmp_path) == {"file": b"x", "folder": None}
    (tmp_path / "folder/note").write_text("mine")
    for name, message in (("folder", r"cannot write .*folder.*directory"), ("file/below", r"cannot write .*below")):
        with pytest.raises(UserError, match=message), atomic_file(tmp_path / name) as temporary:
            temporary.write_text("x")
    assert contents(tmp_path) == {"file": b"x", "folder": None, "folder/note": b"mine"}


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / content).write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == {"out": None, "out/new": b"new"}


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    host, path = socket.gethostname(), tmp_path / "a[1].txt"
    names = [
        f".a[1].txt.part-{host}-{DEAD}-0",  # dead
        f".a[1].txt.part-{host}-{os.getpid()}-99999",  # of a process that had our id
        f".a[1].txt.part-{host}-{os.getppid()}-0",  # alive
        ".a[1].txt.part-elsewhere-17-0",  # fresh
        ".a[1].txt.part-else-where-17-0",  # an hour old
        f".a1.txt.part-{host}-{DEAD}-0",  # of another file
        ".a[1].txt.part-mine",
    ]
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / names[4], (time.time() - 4000,) * 2)
    assert [is_leftover(tmp_path / name, path) for name in names] == [True, True, False, False, True, False, False]
    with atomic_file(path) as first, atomic_file(path) as second:
        second.write_text("second")
        first.write_text("first")
    assert sorted(contents(tmp_path)) == sorted([names[2], names[3], names[5], names[6], "a[1].txt"])


HOLD = """
import subprocess, sys, time
from mmpo.pipeline.storage import file_lock
with file_lock(sys.argv[1], "taken") as lock:
    child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=(lock,)) if sys.argv[2] != "0" else None
    print(child.pid if child else 0, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("child_seconds", ["0", "1"])
def test_a_lock_ends_with_the_last_who_holds_it(tmp_path: Path, child_seconds: str) -> None:
    path = tmp_path / "x.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path), child_seconds], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(UserError, match="wait for the other"), file_lock(path, "wait for the other"):
            pass
        began = time.monotonic()
        with pytest.raises(UserError, match="still taken"), file_lock(path, "still taken", seconds=0.3):
            pass
        assert time.monotonic() - began >= 0.3
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with file_lock(path, "taken", seconds=10) as lock:
        assert lock is not None
        with pytest.raises(UserError, match="taken"), file_lock(path, "taken", optional=True):
            pass


def test_where_there_can_be_no_lock_one_may_go_on_without(tmp_path: Path) -> None:
    path = tmp_path / "missing/x.lock"
    with pytest.raises(FileNotFoundError), file_lock(path, "taken"):
        pass
    with file_lock(path, "taken", optional=True) as lock:
        assert lock is None
