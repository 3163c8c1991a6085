"""Ray in tests and benchmarks: always inside a network namespace that has the loopback interface alone, for it listens on all there are."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import MAIN

_UP = 'ip link set lo up && exec "$@"'


@functools.cache
def inside() -> list[str]:
    """What stands before a command that shall run in such a namespace; the process stays the same. Skips where there can be none."""
    pytest.importorskip("ray")
    for flags in ("-n", "-rn"):
        prefix = ["unshare", flags, "sh", "-c", _UP, "sh"]
        if all(map(shutil.which, ("unshare", "ip"))) and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
            return prefix
    pytest.skip("no network namespaces here (unshare -n), and Ray would listen on all interfaces")


def environment(**more: str) -> dict[str, str]:
    """Of processes that start Ray or join one."""
    support = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    quiet = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, **quiet, "PYTHONPATH": support, "PYTHONUNBUFFERED": "1", **more}


def mmpo_inside(*words: object, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run `mmpo WORDS` to its end in a namespace of its own. more: of its environment."""
    line = [*inside(), sys.executable, "-c", MAIN, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False, env=environment(**more))


def run_inside(script: str, *words: object, timeout: float = 600) -> Any:
    """Run Python code with these arguments in a namespace of its own, and return what it prints last, as JSON."""
    line = [*inside(), sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def cluster(nodes: int, store: int = 200 << 20, **head: Any) -> Any:
    """A Ray of so many nodes of one CPU each, in this process's namespace: `address`, `add_node`, `remove_node`, `shutdown`. store: bytes
    of each one's object store; head: more of the first one's settings."""
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    os.makedirs(get_default_ray_temp_dir(), exist_ok=True)  # where it notes its address; it makes the folder of its logs alone
    logs = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets lie there, whose names must not be long
    atexit.register(shutil.rmtree, logs, ignore_errors=True)
    node = {"num_cpus": 1, "object_store_memory": store}
    found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False, "temp_dir": logs, **head})
    for _ in range(nodes - 1):
        found.add_node(**node)
    found.wait_for_nodes()
    return found


def workers_of(process: int) -> list[int]:
    """The processes of tasks at work, and of actors, that descend from this one."""
    parents, working = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith((b"ray::at_work", b"ray::_Actor")):
                working.append(int(folder.name))
        except OSError:
            continue
    return [one for one in working if process in _line_of(one, parents)]


def _line_of(process: int, parents: dict[int, int]) -> Sequence[int]:
    found = []
    while process in parents:
        found.append(process)
        process = parents[process]
    return found


def namespace_of(process: int) -> str:
    """The name of a process's network namespace."""
    return os.readlink(f"/proc/{process}/ns/net")


def processes_in(namespace: str) -> list[str]:
    """The command lines of all living processes in a namespace."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if line and os.readlink(folder / "ns" / "net") == namespace:
                found.append(line)
        except OSError:
            continue
    return found
