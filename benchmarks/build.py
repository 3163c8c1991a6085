"""How fast is `mmpo build`, and do its memory and its temporary files stay in bounds?

    python benchmarks/build.py [--quick] [--json] [--runs 5] [--alpaca] [--copies 27 --sizes 1,10,100 --memory 2GB]

A real file of grades is copied 1, 10 and 50 times (or --copies times so often) with prompts made distinct. Each size is built by `mmpo
build` in a process of its own, turn by turn with the bare cost of the same input and output: orjson parses the same lines, and pyarrow
writes the very tables that the build wrote (types and text as a reader gets them, zstd). Ratios are ours over bare, in CPU seconds (user
and system, workers included, imports not). Memory is the largest sum over the process tree of what each holds, shared pages counted once
(PSS, sampled); disk the largest size of the temporary files over that of the input, and of these and the dataset together. --alpaca
takes AlpacaEval's annotations instead, from alpaca_eval2_pref.parquet in the folder that MMPO_REAL_DATA names, once and ten times:
1,024,234 pairs a copy.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import orjson
import pyarrow.parquet as pq
from figures import spread

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "data" / "arena_grades.jsonl.gz"

OURS = """
import os, sys
from mmpo.pipeline import BuildOptions, build
from mmpo.pipeline.arrow import leave_pandas_out
leave_pandas_out()  # as the command does
start = sum(os.times()[:4])
memory = sys.argv[5] or None
build(sys.argv[1], sys.argv[2], options=BuildOptions(format=sys.argv[3], scratch=sys.argv[4], memory=memory))
print(sum(os.times()[:4]) - start)
"""

BARE = """
import hashlib, sys, time, orjson
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
outputs = sorted(Path(sys.argv[2]).glob("*/part-*.parquet"))
parse = write = 0.0
start = time.process_time()
with open(sys.argv[1], "rb") as file:
    for line in file:
        orjson.loads(line)
parse = time.process_time() - start
for path in outputs:
    with pq.ParquetFile(path) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            start = time.process_time()
            with pq.ParquetWriter(sys.argv[3], table.schema, compression="zstd") as writer:
                writer.write_table(table)
            write += time.process_time() - start
start = time.process_time()
with open(sys.argv[1], "rb") as file:
    hashlib.file_digest(file, hashlib.blake2b)
    file.seek(0)
    for line in file:
        for value in orjson.loads(line).values():
            if isinstance(value, str):
                hashlib.blake2b(value.encode(), digest_size=16).hexdigest()
    file.seek(0)
    while block := file.read(8 << 20):
        pa.decompress(pa.compress(block, "lz4"), len(block), "lz4")
for path in outputs:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
must = time.process_time() - start - parse
print(parse + write, parse, must)
"""
"""must: what any build of this contract has to do besides, in C alone: the input's digest, ids of texts, each text written to a temporary
file and read again (lz4), digests of the dataset's files."""


def alpaca_eval(folder: Path) -> list[bytes]:
    """AlpacaEval's annotations in lines of JSON as they were published."""
    names = {"prompt": "instruction", "reference": "output_1", "reference_generator": "generator_1", "response": "output_2"}
    names |= {"generator": "generator_2", "preference": "preference", "dataset": "dataset"}
    table = pq.read_table(folder / "alpaca_eval2_pref.parquet", columns=list(names))
    return [orjson.dumps(row) for row in table.rename_columns(list(names.values())).to_pylist()]


def copies(lines: list[bytes], times: int, path: Path) -> int:
    """Write the file `times` times over, each copy with prompts of its own; the number of rows."""
    with path.open("wb") as file:
        for copy in range(times):
            for line in lines:
                row = orjson.loads(line)
                name = "prompt" if "prompt" in row else "instruction"
                row[name] = f"[{copy}] {row[name]}"
                file.write(orjson.dumps(row) + b"\n")
    return times * len(lines)


def tree(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    except OSError:  # it is gone
        pass
    return found


def held(process: int) -> float:
    """MiB of memory that a process holds, pages that it shares with others in part."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def size_of(folder: Path) -> int:
    """Bytes in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it is gone
            total += path.stat().st_size
    return total


class Ours(NamedTuple):
    """What a build took: CPU seconds, seconds, MiB of its process tree, bytes of temporary files, and of these and the dataset."""

    cpu: float
    wall: float
    memory: float
    spilled: int
    disk: int


def ours(source: str, out: str, format: str, memory: str) -> Ours:
    """Build in a process of its own, and look on."""
    scratch = Path(out).parent / "scratch"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-c", OURS, source, out, format, str(scratch), memory]
    peak, spilled, disk, start = 0.0, 0, 0, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(held, tree(process.pid))))
            temporary = size_of(scratch)
            spilled = max(spilled, temporary)
            disk = max(disk, temporary + sum(map(size_of, Path(out).parent.glob(f".{Path(out).name}.part-*"))))
            time.sleep(0.05)
        assert process.stdout is not None and process.returncode == 0, "the build failed"
        return Ours(float(process.stdout.read()), time.monotonic() - start, peak, spilled, disk)


def bare(source: str, out: str, file: str) -> tuple[float, float, float]:
    """CPU seconds of reading and writing alone, of reading, and of what has to be done besides."""
    done = subprocess.run([sys.executable, "-c", BARE, source, out, file], stdout=subprocess.PIPE, text=True, check=True)
    both, parse, must = map(float, done.stdout.split())
    return both, parse, must


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: 1 and 10 copies, three runs")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each size (5; 3 with --quick)")
    parser.add_argument("--file", type=Path, default=SAMPLE, help="JSON lines of grades: prompt, completion, score, ...")
    parser.add_argument("--alpaca", action="store_true", help="AlpacaEval's annotations in the folder that MMPO_REAL_DATA names")
    parser.add_argument("--copies", type=int, default=1, help="of the file, in the size 1")
    parser.add_argument("--sizes", help="how many times that, separated by commas (1,10,50)")
    parser.add_argument("--memory", default="", help="--memory of the build")
    parser.add_argument("--folder", type=Path, help="where inputs and datasets lie while it runs (the system's temporary folder)")
    options = parser.parse_args()
    opened = gzip.open if options.file.suffix == ".gz" else open
    if options.alpaca:
        name, format, lines = "AlpacaEval", "alpaca-eval", alpaca_eval(Path(os.environ["MMPO_REAL_DATA"]))
    else:
        with opened(options.file, "rb") as file:
            name, format, lines = options.file.name, "jsonl", file.read().splitlines()
    given = options.sizes or ("1,10" if options.quick or options.alpaca else "1,10,50")
    sizes = [int(size) for size in given.split(",")]
    runs = options.runs or (3 if options.quick else 5)
    ratios: dict[str, float] = {}
    peaks, walls, cpus, disks = {}, {}, {}, {}
    print(f"{name}: {len(lines):,} rows; {os.cpu_count()} cores; {runs} runs of each, interleaved; median (min - max)")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for times in sizes:
            source, out, alone = (str(Path(scratch) / name) for name in (f"{times}.jsonl", f"{times}", "bare.parquet"))
            rows = copies(lines, times * options.copies, Path(source))
            size = Path(source).stat().st_size
            if runs > 1:
                ours(source, out, format, options.memory)
            built, theirs, parsing, besides = [], [], [], []
            for _ in range(runs):
                built.append(ours(source, out, format, options.memory))
                both, parse, must = bare(source, out, alone)
                theirs.append(both)
                parsing.append(parse / both)
                besides.append(1 + must / both)
            pairs = [one.cpu / b for one, b in zip(built, theirs, strict=True)]
            cpu = [one.cpu for one in built]
            peaks[times], walls[times], cpus[times] = (
                statistics.median(getattr(one, name) for one in built) for name in ("memory", "wall", "cpu")
            )
            spilled, disk = (max(getattr(one, name) for one in built) / size for name in ("spilled", "disk"))
            disks[times] = spilled
            ratios["vs_bare_io"] = statistics.median(pairs)
            ratios["least_over_bare"] = statistics.median(besides)
            ratios["disk_over_input"] = max(spilled, ratios.get("disk_over_input", 0.0))
            made = json.loads((Path(out) / "manifest.json").read_text(encoding="utf-8"))["rows"]
            print(
                f"{times:>3}x {rows:>9,} rows {size / 1e6:7.1f} MB {sum(made.values()):>11,} pairs  ours {spread(cpu)} CPU s "
                f"({rows / statistics.median(cpu):,.0f} rows/s)  bare {spread(theirs)} s ({statistics.median(parsing):.0%} parsing)  "
                f"ratio {spread(pairs)} (digests and lz4 alone {statistics.median(besides):.2f})  "
                f"{walls[times]:.1f} s  tree {peaks[times]:.0f} MiB  temporary files {spilled:.2f} of the input, "
                f"with the dataset {disk:.2f}",
                flush=True,
            )
            subprocess.run(["rm", "-rf", out, source], check=True)
    for few, many in pairwise(sizes):
        ratios[f"memory_{many}x_over_{few}x"] = peaks[many] / peaks[few]
    ratios["cpu_growth_over_linear"] = cpus[sizes[-1]] / cpus[sizes[0]] * sizes[0] / sizes[-1]
    ratios["disk_growth_over_linear"] = disks[sizes[-1]] / disks[sizes[0]]
    ratios["memory_mib"] = max(peaks.values())
    print(
        "aims: vs_bare_io <= 1.2 at the largest size, disk_over_input <= 1.2, memory from 10x on within 15%, growth over linear <= 1.05"
    )
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
