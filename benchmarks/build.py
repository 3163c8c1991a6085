"""How fast is `mmpo build`, and does its memory stay flat?

    python benchmarks/build.py [--quick] [--json] [--runs 5] [--alpaca]

A real file of grades is copied 1, 10 and 50 times with prompts made distinct. Each size is built by `mmpo build` in a process of its own,
turn by turn with the bare cost of the same input and output: orjson parses the same lines, and pyarrow writes the very tables that the
build wrote (types and text as a reader gets them, zstd). Ratios are ours over bare, in CPU seconds (user and system, workers included,
imports not); memory is the largest resident set of the process tree's largest member. --alpaca takes AlpacaEval's annotations instead,
from alpaca_eval2_pref.parquet in the folder that MMPO_REAL_DATA names, once and ten times: 1,024,234 pairs a copy.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

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
build(sys.argv[1], sys.argv[2], options=BuildOptions(format=sys.argv[3]))
print(sum(os.times()[:4]) - start)
"""

BARE = """
import sys, time, orjson
from pathlib import Path
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
print(parse + write, parse, write)
"""


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


def timed(code: str, *arguments: str) -> tuple[list[float], float]:
    """What the process printed, and the peak of its (and its children's) memory in MiB."""
    wrapper = (
        "import resource,subprocess,sys;"
        "done=subprocess.run([sys.executable,'-c',*sys.argv[1:]],stdout=subprocess.PIPE,text=True,check=True);"
        "print(done.stdout.strip(),resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1024)"
    )
    done = subprocess.run([sys.executable, "-c", wrapper, code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    values = [float(value) for value in done.stdout.split()]
    return values[:-1], values[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: 1 and 10 copies, three runs")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each size (5; 3 with --quick)")
    parser.add_argument("--file", type=Path, default=SAMPLE, help="JSON lines of grades: prompt, completion, score, ...")
    parser.add_argument("--alpaca", action="store_true", help="AlpacaEval's annotations in the folder that MMPO_REAL_DATA names")
    options = parser.parse_args()
    opened = gzip.open if options.file.suffix == ".gz" else open
    if options.alpaca:
        name, format, lines = "AlpacaEval", "alpaca-eval", alpaca_eval(Path(os.environ["MMPO_REAL_DATA"]))
    else:
        with opened(options.file, "rb") as file:
            name, format, lines = options.file.name, "jsonl", file.read().splitlines()
    sizes = (1, 10) if options.quick or options.alpaca else (1, 10, 50)
    runs = options.runs or (3 if options.quick else 5)
    ratios: dict[str, float] = {}
    peaks: dict[int, float] = {}
    print(f"{name}: {len(lines):,} rows; {os.cpu_count()} cores; {runs} runs of each, interleaved; median (min - max)")
    with tempfile.TemporaryDirectory() as scratch:
        for times in sizes:
            source, out, bare = (str(Path(scratch) / name) for name in (f"{times}.jsonl", f"{times}", "bare.parquet"))
            rows = copies(lines, times, Path(source))
            timed(OURS, source, out, format)
            ours, theirs, memory, parsing = [], [], [], []
            for _ in range(runs):
                (seconds,), peak = timed(OURS, source, out, format)
                ours.append(seconds)
                memory.append(peak)
                (both, parse, _), _ = timed(BARE, source, out, bare)
                theirs.append(both)
                parsing.append(parse / both)
            pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
            peaks[times] = statistics.median(memory)
            ratios["vs_bare_io"] = statistics.median(pairs)
            print(
                f"{times:>3}x {rows:>9,} rows {Path(source).stat().st_size / 1e6:7.1f} MB  ours {spread(ours)} CPU s "
                f"({rows / statistics.median(ours):,.0f} rows/s)  bare {spread(theirs)} s ({statistics.median(parsing):.0%} parsing)  "
                f"ratio {spread(pairs)}  peak {peaks[times]:.0f} MiB"
            )
            if times != sizes[-1]:
                subprocess.run(["rm", "-rf", out, source], check=True)
    ratios["memory_10x_over_1x"] = peaks[10] / peaks[1]
    if 50 in peaks:
        ratios["memory_50x_over_10x"] = peaks[50] / peaks[10]
    print("aims: vs_bare_io <= 2 at the largest size; memory from 10x on flat within 20%")
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
