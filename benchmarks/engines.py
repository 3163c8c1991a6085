"""What does a build cost on Ray, and is a second node worth its price?

    python benchmarks/engines.py [--quick] [--json] [--prompts 100000] [--runs 3]

Made-up grades, 15 replies to a prompt and all 105 pairs of them, are built by `mmpo build` on this machine and on a Ray of its own, turn
by turn: CPU seconds of all processes, Ray's own among them, from the start of the command to its end; and whether the files are the same.
Then they are built on a running Ray of one node of one CPU and on one of two: seconds of the build alone. Everything runs in network
namespaces that have the loopback interface alone (unshare -n), for Ray listens on all there are.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from figures import spread

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

from ray_cases import environment, inside, namespace_of  # noqa: E402

REPLIES, WORDS = 15, 60
TICK = os.sysconf("SC_CLK_TCK")
BUILD = "from mmpo.cli.main import main; main()"
ON_NODES = """
import sys, time
from ray_cases import cluster
from mmpo.pipeline import BuildOptions, build

ray = cluster(int(sys.argv[3]), store=700 << 20)  # what Ray gives a node of 2.3 GB
options = BuildOptions(format="jsonl", scale=(1, 10), engine="ray", ray_address=ray.address)
start = time.monotonic()
build(sys.argv[1], sys.argv[2], options=options)
print(time.monotonic() - start)
ray.shutdown()
"""


def write_grades(path: Path, prompts: int) -> None:
    """JSON lines of grades by two raters, of one each."""
    draw = Random(0)
    words = [f"word{number}" for number in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(prompts):
            prompt = f"Question {number}: {' '.join(draw.choices(words, k=20))}"
            for place in range(REPLIES):
                row = {"prompt": prompt, "completion": " ".join(draw.choices(words, k=WORDS)), "score": draw.randint(1, 10)}
                file.write(json.dumps({**row, "rater": f"rater-{place % 2}"}) + "\n")


@contextmanager
def cpu_seconds(process: "subprocess.Popen[str]") -> Iterator[list[float]]:
    """CPU seconds of all processes of a process's network namespace, looked at ten times a second until the block ends."""
    namespace, seen, total = namespace_of(process.pid), {}, [0.0]
    over = threading.Event()

    def look() -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(folder / "ns" / "net") == namespace:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    seen[folder.name, fields[19]] = (int(fields[11]) + int(fields[12])) / TICK
            except OSError:
                continue

    def watch() -> None:
        while not over.wait(0.1):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield total
    finally:
        over.set()
        watcher.join()
        total[0] = sum(seen.values())


def built(data: Path, out: Path, engine: str) -> tuple[float, float]:
    """CPU seconds and seconds of `mmpo build`."""
    line = [*inside(), sys.executable, "-c", BUILD, "build", str(data), "--format", "jsonl", "--scale", "1:10", "--out", str(out)]
    start = time.monotonic()
    line += ["--engine", engine, "--workers", "2"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        while namespace_of(process.pid) == namespace_of(os.getpid()):
            time.sleep(0.01)
        with cpu_seconds(process) as total:
            _, said = process.communicate()
    if process.returncode:
        sys.exit(said)
    return total[0], time.monotonic() - start


def on_nodes(data: Path, out: Path, nodes: int) -> float:
    """Seconds of a build on a running Ray of so many nodes of one CPU."""
    line = [*inside(), sys.executable, "-c", ON_NODES, str(data), str(out), str(nodes)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def files_of(out: Path) -> object:
    """Names, sizes and digests of a dataset's files."""
    return json.loads((out / "manifest.json").read_text())["files"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some minutes: 4,000 prompts")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--prompts", type=int, help="of 105 pairs each (100,000: 10 million pairs)")
    parser.add_argument("--runs", type=int, default=3, help="of each")
    options = parser.parse_args()
    prompts = options.prompts or (4_000 if options.quick else 100_000)
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "grades.jsonl"), Path(scratch, "out")
        write_grades(data, prompts)
        pairs, size = REPLIES * (REPLIES - 1) // 2 * prompts, data.stat().st_size
        print(
            f"{prompts:,} prompts, {pairs:,} pairs, {size / 1e6:,.0f} MB; {os.cpu_count()} cores; {options.runs} runs of each",
            flush=True,
        )
        cpu: dict[str, list[float]] = {"local": [], "ray": []}
        wall: dict[str, list[float]] = {"local": [], "ray": []}
        held = {}
        for _ in range(options.runs):
            for engine in cpu:
                seconds, took = built(data, out, engine)
                cpu[engine].append(seconds)
                wall[engine].append(took)
                held[engine] = files_of(out)
        if held["ray"] != held["local"]:
            sys.exit("the files differ")
        ratios = [b / a for a, b in zip(cpu["local"], cpu["ray"], strict=True)]
        for engine, seconds in cpu.items():
            print(f"{engine:>6}: {spread(seconds)} CPU s, {spread(wall[engine])} s")
        print(
            f"Ray over local: {spread(ratios)} times the CPU seconds (aim: at most 1.3 at 10 million pairs); the same files",
            flush=True,
        )
        nodes: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.runs):
            for count, times in nodes.items():
                times.append(on_nodes(data, out, count))
                if files_of(out) != held["local"]:
                    sys.exit("the files differ")
        faster = [a / b for a, b in zip(nodes[1], nodes[2], strict=True)]
        print(f"one node {spread(nodes[1])} s, two nodes {spread(nodes[2])} s: {spread(faster)} times as fast (aim: at least 1.6)")
        if options.json:
            print(json.dumps({"ray_over_local_cpu": statistics.median(ratios), "two_nodes_faster": statistics.median(faster)}))


if __name__ == "__main__":
    main()
