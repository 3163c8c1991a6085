"""Does judging keep its places busy, what does a request cost, and does memory stay flat?

    python benchmarks/judge.py [--quick] [--json] [--runs 5]

A server on the loopback interface, a process of its own, holds every answer back for a lognormal time (median 0.2 s, 99th percentile
5 s; half of both with --quick). The same requests go to it, 64 in flight, from `mmpo` judging, from the bare openai client behind a
semaphore and, at a tenth of the pace and therefore once and in the background, from the pattern that waits for batches of 64. The ideal
is the makespan of list-scheduling the latencies that the server drew, in order of arrival, on 64 places: no CPU, no network, no
writing. A ratio is the ideal over the time from the first request's arrival to the last answer's being in hand (ours: durable in the
journal). The slowest answers of all decide how a run ends, so the same is told of the time until the last request starts.
"""

import argparse
import heapq
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from figures import spread
from judge_clients import CHECKPOINT, MODEL

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

from openai_server import Server, serving  # noqa: E402

from mmpo.annotate.judge import (  # noqa: E402
    Capabilities,
    Judge,
    JudgeOptions,
    Questions,
)
from mmpo.annotate.rows import Feedback, rows_of  # noqa: E402
from mmpo.pipeline import BuildOptions, build  # noqa: E402

IN_FLIGHT = 64
A_PROMPT = 12
"""Requests a prompt: four candidates, six pairs, both orders."""
SENTENCE = "The reply says what was asked, names where that comes from, and leaves one thing open that a reader may look up. "


@dataclass(frozen=True)
class Size:
    """Requests of each measurement, how often each is run, and the latency's median and 99th percentile in seconds."""

    slow: int
    fast: int
    many: int
    runs: int
    latency: tuple[float, float]


FULL = Size(6_000, 6_000, 200_000, 5, (0.2, 5.0))
QUICK = Size(1_200, 1_800, 0, 3, (0.1, 2.5))
"""Half the latency, so that the same tail ends in half the time: the harder case, twice the requests a second."""


class Work:
    """The same questions as a FEEDBACK folder and as bodies for the bare client."""

    def __init__(self, scratch: Path, name: str, requests: int, *, bodies: bool = True) -> None:
        self.requests = -(-requests // A_PROMPT) * A_PROMPT
        self.scratch, self.feedback, self.bodies = scratch, scratch / name, scratch / f"{name}.bodies"
        lines = scratch / f"{name}.jsonl"
        with lines.open("wb") as file:
            for i in range(self.requests // A_PROMPT):
                replies = [f"Candidate {j} on question {i}. {SENTENCE * (3 + (i + 2 * j) % 5)}" for j in range(4)]
                file.write(
                    orjson.dumps({"prompt": f"Question {i}: what follows from it, and why?", "completions": replies}) + b"\n"
                )
        build(lines, self.feedback, options=BuildOptions(format="jsonl", feedback_only=True))
        if bodies:
            questions = Questions(Judge(MODEL), JudgeOptions(model=MODEL), Capabilities(several=False))
            with self.bodies.open("wb") as file:
                for table in Feedback.open(self.feedback).tables():
                    for row in rows_of(table, scores=False, reference=None):
                        file.writelines(orjson.dumps(one.body) + b"\n" for q in questions.of(row) for one in q.requests)


def command(kind: str, work: Work, server: Server, journals: Path) -> list[str]:
    """The command line of one client; ours writes to a place of its own."""
    if kind != "mmpo":
        return [sys.executable, str(HERE / "judge_clients.py"), kind, str(work.bodies), server.base_url, str(IN_FLIGHT)]
    out = tempfile.mkdtemp(dir=work.scratch)
    paths = [str(work.feedback), f"{out}/judged", str(journals / f"{os.path.basename(out)}.sqlite")]
    return [sys.executable, str(HERE / "judge_clients.py"), kind, *paths, server.base_url, str(IN_FLIGHT), str(work.requests)]


def run(kind: str, work: Work, server: Server, journals: Path) -> dict[str, float]:
    """What the client says, and `process`, its wall time from start to end in seconds."""
    started = time.time()
    done = subprocess.run(command(kind, work, server, journals), stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "process": time.time() - started}


def schedule(latencies: Sequence[float], places: int) -> tuple[float, float]:
    """When the last one starts and when all have ended if each next one takes the first place that is free, in seconds from the start.

    >>> schedule([3, 1, 1, 1, 2], 2)
    (3, 5)
    """
    free: list[float] = [0] * min(places, len(latencies))
    last = 0.0
    for latency in latencies:
        last = free[0]
        heapq.heapreplace(free, last + latency)
    return last, max(free)


@dataclass(frozen=True)
class Seen:
    """One client at the slow server, in seconds: until all answers are in hand, until the last request starts, the whole process.

    distinct: different bodies that it sent.
    """

    ideal: float
    asking: float
    ideal_starts: float
    starts: float
    process: float
    distinct: int


def look(said: dict[str, float], server: Server) -> Seen:
    """What the server saw of a client, without the probe or warm-up that comes first."""
    log = server.log()[1:]
    first = log[0]["arrived"]
    starts, ideal = schedule([row["latency"] for row in log], IN_FLIGHT)
    distinct = len({row["digest"] for row in log})
    return Seen(ideal, said["ended"] - first, starts, log[-1]["arrived"] - first, said["process"], distinct)


@contextmanager
def background(kind: str, work: Work, server: Server) -> Iterator[dict[str, float]]:
    """The client runs beside what the block does; when the block has ended, it is waited for and has said what it measured."""
    said: dict[str, float] = {}
    started = time.time()
    process = subprocess.Popen(command(kind, work, server, work.scratch), stdout=subprocess.PIPE, text=True)
    try:
        yield said
        text, _ = process.communicate()
        said |= json.loads(text.splitlines()[-1])
        said["process"] = said["ended"] - started
    finally:
        process.kill()
        process.wait()


def slow(work: Work, runs: int, latency: tuple[float, float]) -> dict[str, float]:
    """The three clients at the server with the long tail; the ratios of the ideal to what they took."""
    seen: dict[str, list[Seen]] = {"mmpo": [], "semaphore": [], "gather": []}
    plans = [{"latency": dict(zip(("median", "p99"), latency)), "seed": 100 + number} for number in range(runs)]
    with serving(plans[0]) as other:
        with background("gather", work, other) as said:
            for plan in plans:
                for kind in ("mmpo", "semaphore"):
                    with serving(plan) as server:
                        seen[kind].append(look(run(kind, work, server, work.scratch), server))
            note("waiting for the batches in the background")
        seen["gather"].append(look(said, other))
    if {one.distinct for runs_of in seen.values() for one in runs_of} != {work.requests}:
        raise RuntimeError("the clients did not send every request once")
    print(f"latency: {work.requests:,} requests, median {latency[0]} s, p99 {latency[1]} s, {IN_FLIGHT} in flight")
    ratios = {}
    for kind, prefix in (("mmpo", ""), ("semaphore", "semaphore_"), ("gather", "gather_")):
        of_ideal = [one.ideal / one.asking for one in seen[kind]]
        starts = [one.ideal_starts / one.starts for one in seen[kind]]
        ratios |= {f"{prefix}of_ideal": statistics.median(of_ideal), f"{prefix}starts_of_ideal": statistics.median(starts)}
        print(
            f"  {kind:9}  ideal {spread([one.ideal for one in seen[kind]])} s  asking {spread([one.asking for one in seen[kind]])} s  "
            f"ratio {spread(of_ideal, 3)}  until the last start {spread(starts, 3)}  "
            f"whole process {spread([one.process for one in seen[kind]])} s"
        )
    return ratios


def fast(work: Work, runs: int, *, apart: bool) -> dict[str, float]:
    """The cost of a request at a server without latency, beside the bare client's. apart: also with a journal that no disk delays."""
    memory = Path("/dev/shm")
    kinds = [("mmpo", "mmpo", work.scratch), ("bare client", "semaphore", work.scratch)]
    if apart and memory.is_dir() and os.access(memory, os.W_OK):
        kinds.insert(1, ("mmpo, journal in memory", "mmpo", memory))
    wall: dict[str, list[float]] = {name: [] for name, *_ in kinds}
    cpu: dict[str, list[float]] = {name: [] for name, *_ in kinds}
    for _ in range(runs):
        for name, kind, place in kinds:
            with tempfile.TemporaryDirectory(dir=place) as journals, serving() as server:
                said = run(kind, work, server, Path(journals))
            wall[name].append((said["ended"] - said["began"]) / work.requests * 1e6)
            cpu[name].append(said["cpu"] / work.requests * 1e6)
    print(f"no latency: {work.requests:,} requests, {IN_FLIGHT} in flight, microseconds a request")
    for name, *_ in kinds:
        print(
            f"  {name:23}  wall {spread(wall[name], 0)}  CPU {spread(cpu[name], 0)}  {1e6 / statistics.median(wall[name]):,.0f} a second"
        )
    return {"overhead_vs_bare": statistics.median(a / b for a, b in zip(wall["mmpo"], wall["bare client"]))}


def memory(work: Work) -> dict[str, float]:
    """The largest resident set after a tenth of the requests and after all of them."""
    with serving() as server:
        said = run("mmpo", work, server, work.scratch)
    early, late = said["peak_at_checkpoint"], said["peak_of_asking"]
    print(
        f"memory: {early:.0f} MiB after {CHECKPOINT:,} requests, {late:.0f} MiB after {work.requests:,}, "
        f"{said['peak_of_all']:.0f} MiB with the writing; {said['process']:.0f} s"
    )
    return {"memory_10x": late / early}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two minutes: fewer requests, half the latency, three runs, no look at memory"
    )
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each measurement (5; 3 with --quick)")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    runs = options.runs or size.runs
    os.environ.pop("OPENAI_API_KEY", None)
    print(f"{os.cpu_count()} cores; {runs} runs of each, interleaved (gather: one); median (min - max)", flush=True)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ratios |= fast(Work(Path(scratch), "fast", size.fast), runs, apart=not options.quick)
        ratios |= slow(Work(Path(scratch), "slow", size.slow), runs, size.latency)
        if size.many:
            ratios |= memory(Work(Path(scratch), "many", size.many, bodies=False))
    print("aims: of_ideal >= 0.95; overhead_vs_bare <= 1; memory_10x <= 1.2")
    if options.json:
        print(json.dumps({"ratios": ratios}))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
