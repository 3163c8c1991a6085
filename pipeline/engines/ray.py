"""Ray: tasks on all cores of a cluster, or of this machine. What a task spilled stays in Ray's object store, and Ray makes it anew where
the worker or node that held it is lost: a task is a function of its arguments, and what it spills the same each time.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmpo.pipeline.engines.actors import Actors, value_of
from mmpo.pipeline.engines.base import SPILLED
from mmpo.pipeline.engines.held import held_folder
from mmpo.pipeline.engines.local import interrupts_wait
from mmpo.pipeline.engines.travel import (
    ATTEMPTS,
    OUTPUT,
    SCRATCH,
    TOKEN,
    Homes,
    Parcel,
    Place,
    Returned,
    at_work,
    go_to,
    make_folder,
    packed,
    unpacked,
)
from mmpo.pipeline.errors import UserError, printable
from mmpo.pipeline.progress import say
from mmpo.pipeline.storage.files import remove

INSTALL = 'pip install "mmpo[ray]"'
ADDRESS = "RAY_ADDRESS"
RETRIES = 20
"""How often a task is begun again whose worker was killed."""
ANSWER_SECONDS = 5.0
LOOK_SECONDS, MOST_MISSED = 3.0, 5
STOP_SECONDS = 20.0
CHECK_SECONDS = 120.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
LOST_BUILD = ", and with it what was done so far; nothing was written. Once it is up again, the same command begins anew"
LOST_ACTORS = "; what came so far is kept. Once it is up again, the same command goes on"
NOT_STARTED = "Ray did not start on this machine, which may be short of time, memory or disk; the same command tries again"
LONGEST_TEMPORARY = 40
"""Characters of a folder's name that sockets of Ray may lie in: the system allows 107 in all."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How an HTTP/2 connection begins, with empty settings; a server answers with settings of its own, a frame of type 4."""


def _ray() -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with _silent():
            import ray
            from ray._private import worker
    except ImportError as error:
        raise UserError(f"--engine ray needs the package ray: {INSTALL}") from error
    worker.print_to_stdstream = _told  # it writes them on standard output
    return ray


def _told(what: dict[str, Any], **_: Any) -> None:
    """What Ray says of its nodes and workers while it works, in a line each; what is said again is of another process of the same node."""
    for line in what["lines"]:
        first = line.partition(". ")[0].strip()
        if first and first not in _said and not first.startswith("Task "):  # which a worker that died says as well
            say(
                f"Ray: {printable(first, 200)}; its tasks begin again elsewhere"
                if "Raylet" in first
                else f"Ray: {printable(first, 200)}"
            )
        _said[:] = [first]


_said: list[str] = []


class RayCluster:
    """The Ray that is running at an address, else one that is started on this machine and ends with the run."""

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1
        self.memory: int | None = None
        self.here = True
        self.nodes: list[dict[str, Any]] = []
        self._given = workers
        self._address = address or os.environ.get(ADDRESS) or None
        self._named = f"--ray-address {address}" if address else f"{ADDRESS}={self._address}" if self._address else "--engine ray"
        self._joined = False

    def __enter__(self) -> "RayCluster":
        self._ray = _ray()
        if self._ray.is_initialized():
            self._look()
        elif self._address:
            self._join(self._address)
        self.here = not self.nodes
        return self

    def __exit__(self, *error: object) -> None:
        if self._joined:
            self._ray.shutdown()

    def check(self, paths: Sequence[str]) -> None:
        if self.here:
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self._ray.remote(num_cpus=0, max_retries=2)(missing_here)
        here, files = version_here(), [path for path in paths if "://" not in path]
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                os.getcwd(), files
            ): node
            for node in self.nodes
        }
        done, late = self._ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
        for ref in (*done, *late):
            node = f"node {asked[ref]['NodeManagerAddress']} ({asked[ref]['NodeManagerHostname']}) of the Ray cluster"
            if ref in late:
                raise UserError(f"{node} does not answer within {CHECK_SECONDS:g} s; look at it with ray status, or take it out")
            try:
                version, missing = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                if asked[ref]["NodeID"] not in {one["NodeID"] for one in self._ray.nodes() if one["Alive"]}:
                    continue  # lost meanwhile, which may happen at any time
                raise UserError(
                    f"{node} can't run mmpo: {_first_line(error)}. Install it there as here ({INSTALL.replace('mmpo', f'mmpo=={here}')})"
                    " in the Python that Ray runs in"
                ) from error
            if version != here:
                raise UserError(f"{node} has mmpo {version}, this process {here}; install the same on all")
            if missing:
                raise UserError(
                    f"{node} does not see {os.path.abspath(missing)}: put it where all nodes see it under this name, on a shared "
                    "file system (what is fetched from the Hub or an object store lies in the folder that HF_HOME or MMPO_CACHE names)"
                )

    @contextmanager
    def running(self, workers: int, folder: Path, scratch: Path, memory: int = 0) -> Iterator["_RayRunner"]:
        homes = folder.absolute(), scratch.absolute()
        with self._started(workers, homes[SCRATCH]) if self.here else nullcontext():
            most = min(int(node["Resources"].get("memory", 0)) for node in self.nodes)  # any may be the last that is left
            token = uuid.uuid4().hex
            (folder / ATTEMPTS).mkdir()  # before the token: who sees that finds this
            (folder / TOKEN).write_text(token)
            runner = _RayRunner(self._ray, homes, token, workers, min(memory, most), str(homes[SCRATCH]) if self.here else None)
            over = threading.Event()
            if not self.here:
                self._watch(lambda: remove(homes[OUTPUT]), LOST_BUILD, over)
            try:
                yield runner
            except BaseException:
                if self._joined:  # tasks end with the connection, as with a Ray of its own
                    with interrupts_wait():
                        self._ray.shutdown()
                elif not self.here:
                    runner.stop()
                raise
            finally:
                over.set()
                (folder / TOKEN).unlink(missing_ok=True)
                remove(folder / ATTEMPTS)

    @contextmanager
    def actors(self, count: int | None = None) -> Iterator[Actors]:
        with held_folder("mmpo-actors-") as scratch, self._started(self.workers, scratch) if self.here else nullcontext():
            over = threading.Event()
            if not self.here:
                self._watch(lambda: shutil.rmtree(scratch, ignore_errors=True), LOST_ACTORS, over)
            try:
                yield Actors(self._ray, self.nodes, self.check, count)
            finally:
                over.set()

    def about(self) -> dict[str, Any]:
        cpus = sum(int(node["Resources"]["CPU"]) for node in self.nodes)
        return {"name": "ray", "version": self._ray.__version__, "nodes": len(self.nodes), "cpus": min(cpus, self.workers)}

    @contextmanager
    def _started(self, workers: int, scratch: Path) -> Iterator[None]:
        """Ray on this machine, for the run alone. What it holds beyond memory goes into the scratch folder."""
        with held_folder("mmpo-ray-", _short_temporary()) as temporary:
            try:
                os.environ.setdefault(
                    "RAY_AUTH_TOKEN", uuid.uuid4().hex
                )  # which Ray else leaves in the home folder for all to read
                with interrupts_wait():  # half of Ray would stay behind
                    self._init(
                        address="local",
                        num_cpus=workers,
                        include_dashboard=False,
                        _temp_dir=str(temporary / "ray"),
                        _system_config={"worker_niceness": 0},  # as processes of this machine have it; Ray's is 15
                        object_spilling_directory=str(scratch / "objects"),
                    )
                self._look()
                yield
            finally:
                with interrupts_wait():
                    self._ray.shutdown()

    def _join(self, address: str) -> None:
        if address.startswith(("ray://", "http://", "https://")):
            raise UserError(
                f"{self._named}: this is no address of a cluster's head; give HOST:PORT, as ray start --head shows it (mostly port 6379), "
                "or auto, on a machine of the cluster"
            )
        if address != "auto":
            check_answers(address, self._named)
        self._init(address=address)
        self._joined = True
        self._look()

    def _init(self, **how: Any) -> None:
        before = signal.getsignal(signal.SIGTERM)
        try:
            with _silent():
                self._ray.init(**how, configure_logging=False, log_to_driver=False)
        except (SystemExit, Exception) as error:
            with _silent():
                self._ray.shutdown()
            todo = f" {NOT_STARTED}" if how["address"] == "local" else ""
            raise UserError(f"{self._named}: {_why(error)}{todo}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray puts its own there

    def _watch(self, clean: Callable[[], None], words: str, over: threading.Event) -> None:
        address = self._ray.get_runtime_context().gcs_address
        threading.Thread(target=_end_without, args=(address, clean, words, over), daemon=True).start()

    def _look(self) -> None:
        """What the nodes have."""
        self.nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not self.nodes:
            raise UserError(f"{self._named}: no node of this Ray has a CPU to work with; see ray status")
        self.workers = self._given or sum(int(node["Resources"]["CPU"]) for node in self.nodes)
        self.memory = self.workers * int(min(node["Resources"].get("memory", 0) / node["Resources"]["CPU"] for node in self.nodes))


@contextmanager
def _silent() -> Iterator[None]:
    """What Ray and the libraries below it write on standard error inside is not shown: it is told again by its errors."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _short_temporary() -> str | None:
    """A folder for sockets, whose name must not be long; None: the system's for temporary files."""
    return "/tmp" if len(tempfile.gettempdir()) > LONGEST_TEMPORARY and os.path.isdir("/tmp") else None


def check_answers(address: str, named: str) -> None:
    """Raise UserError where nothing that could be Ray answers: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{named}: an address is HOST:PORT, as ray start --head shows it (mostly port 6379), or auto")
    todo = "Is the cluster up (ray status on its head)? Without --ray-address a Ray of its own is started on this machine"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise UserError(f"{named}: no Ray is there ({error}). {todo}") from error
    if answer[3:4] != b"\x04":
        raise UserError(f"{named}: something else than Ray is there. {todo}")


def _end_without(head: str, clean: Callable[[], None], words: str, over: threading.Event) -> None:
    """Clean up and end this process where the cluster's head is gone, until it is over. Ray lets calls hang then, and ends the process
    itself after a minute, without a word.
    """
    host, _, port = head.rpartition(":")
    missed = 0
    while not over.wait(LOOK_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
            missed = 0
        except OSError:
            missed += 1
        if missed == MOST_MISSED:
            say(f"error: --engine ray: the head of the Ray cluster at {head} is gone{words}")
            clean()
            os._exit(2)


def _why(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it does not answer as the head of a Ray cluster does; give the address that ray start --head shows"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(" ".join(lines), 600)


def _first_line(error: BaseException) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[-1], 300)


def version_here() -> str:
    """Of mmpo and of Python."""
    return f"{version('mmpo')} (Python {sys.version.split()[0]})"


def missing_here(directory: str, paths: Sequence[str]) -> tuple[str, str | None]:
    """On a node: its version, and the first of the files, named as in a directory, that it does not see."""
    go_to(directory)
    return version_here(), next((path for path in paths if not os.access(path, os.R_OK)), None)


class _RayRunner:
    """Spilled files are objects in the store; all other files of tasks come to where they belong here."""

    def __init__(self, ray: Any, homes: Homes, token: str, workers: int, memory: int, temporary: str | None) -> None:
        self.ray, self.homes, self.token, self.workers, self.memory, self.temporary = ray, homes, token, workers, memory, temporary
        self.spilled: dict[Place, Any] = {}
        self.running: dict[Any, tuple[int, list[Any]]] = {}
        self.runs = 0

    def __call__(self, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, shards: int = 0) -> Iterator[Any]:
        self.runs, running = self.runs + 1, {}
        self.running = running
        needs = {"num_cpus": 1, "memory": self.memory, "num_returns": 1 + shards}
        where = "SPREAD" if shards else "DEFAULT"  # readers on all nodes, and then where most of what was read lies
        remote = self.ray.remote(**needs, max_retries=RETRIES, scheduling_strategy=where)(at_work)
        waiting, done, at = iter(enumerate(tasks)), {}, 0
        while at < len(tasks):
            while len(running) < 2 * self.workers and (following := next(waiting, None)) is not None:
                number, arguments = following
                first, *left = self._submitted(remote, (work, arguments), shards)
                running[first] = number, left
            if at in done:
                yield done.pop(at)
                at += 1
                continue
            for ref in self.ray.wait(list(running), num_returns=1)[0]:
                number, left = running.pop(ref)
                done[number] = self._taken(self._got(ref), number, left)

    def forget(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.spilled.pop((SCRATCH, str(path.relative_to(self.homes[SCRATCH]))), None)

    def stop(self) -> None:
        """Interrupt all tasks, and wait until they have ended. Not by force: where one ends just then, Ray aborts this process."""
        for ref in self.running:
            self.ray.cancel(ref)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=STOP_SECONDS)

    def _submitted(self, remote: Any, task: tuple[Any, tuple[Any, ...]], shards: int) -> list[Any]:
        data, places = packed(task, self.homes)
        spilled = [place for place in places if place in self.spilled]
        paths = {place: self.homes[place[0]] / place[1] for place in places if place not in self.spilled}
        folders = [place for place, path in paths.items() if path.is_dir()]
        files = {place: path.read_bytes() for place, path in paths.items() if path.is_file()}
        parcel = Parcel(data, os.getcwd(), folders, files, spilled)
        refs = remote.remote(
            parcel, str(self.homes[OUTPUT]), self.token, self.temporary, shards, *(self.spilled[place] for place in spilled)
        )
        return refs if shards else [refs]

    def _got(self, ref: Any) -> Any:
        try:
            return value_of(self.ray, ref)
        except self.ray.exceptions.RayError as error:
            raise UserError(
                f"--engine ray: a task was lost for good: {_first_line(error)}. Look at memory and disk of the nodes (ray status); the "
                "same command begins anew"
            ) from error

    def _taken(self, returned: Returned, number: int, left: Sequence[Any]) -> Any:
        """The result of a task, whose files come to where they belong."""
        for place, content in returned.files.items():
            make_folder(self.homes, (place[0], os.path.dirname(place[1])))
            (self.homes[place[0]] / place[1]).write_bytes(content)
        if returned.attempt:
            _move(self.homes[OUTPUT] / ATTEMPTS / returned.attempt, self.homes[OUTPUT])

        def path_of(place: Place) -> Path:
            path = self.homes[place[0]] / place[1]
            if path.suffix != SPILLED:
                return path
            shard = int(path.name.partition("-")[0])
            path = path.with_name(f"{shard:05d}-{self.runs:03d}-{number:06d}{SPILLED}")  # tasks of one worker use the same names
            self.spilled[SCRATCH, str(path.relative_to(self.homes[SCRATCH]))] = left[shard]
            return path

        return unpacked(returned.data, path_of)


def _move(folder: Path, into: Path) -> None:
    """Move what an attempt wrote into the output folder."""
    for path in sorted(folder.rglob("*")):
        target = into / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(path, target)
    shutil.rmtree(folder)
