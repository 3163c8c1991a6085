"""What does `mmpo validate` cost beside reading the same parts, and does its memory stay flat?

    python benchmarks/validate.py [--quick] [--json] [--runs 5]

A dataset like AlpacaEval's, every pair of up to 58 replies to a prompt, is built at a tenth of its size and whole: from
alpaca_eval2_pref.parquet in the folder that MMPO_REAL_DATA names (1,024,234 pairs), else from made-up texts; and one of made-up texts
with one pair a prompt (100,000; 25,000 with --quick), where no text repeats. `validate` holds every rule
of the data contract, digests included. Beside it, turn by turn and each in a process of its own: pyarrow reads the same parts with its
defaults (4,096 rows at once) and hashlib's blake2b hashes every distinct text once. `lean` is the same with texts read as dictionaries,
which validate does too. Ratios are of CPU seconds; memory is the largest resident set.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from figures import spread

HEAD = """
import sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq
"""
TAIL = "print(time.process_time() - start, int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024)"
# VmHWM, since ru_maxrss of a child is at least what its parent held when it started it.
OURS = f"""{HEAD}
from mmpo.pipeline import validate
from mmpo.pipeline.arrow import leave_pandas_out
leave_pandas_out()  # as the command does
start = time.process_time()
found = validate(sys.argv[1])
assert found["ok"], found
{TAIL}
"""
READ = f"""{HEAD}
from hashlib import blake2b
TEXTS = [f"{{side}}.list.element.{{part}}" for side in ("prompt", "chosen", "rejected") for part in ("role", "content")]
FLAT = ["prompt_id", "chosen_id", "rejected_id", "kind", "chosen_model", "rejected_model", "source"]
start, seen = time.process_time(), set()
for path in sorted(Path(sys.argv[1]).glob("*/*.parquet")):
    with pq.ParquetFile(path, read_dictionary=[*TEXTS, *FLAT] if LEAN else None) as parquet:
        groups = [[group] for group in range(parquet.num_row_groups)] if LEAN else [None]
        for group in groups:
            for batch in parquet.iter_batches(32_768 if LEAN else 4_096, row_groups=group, use_threads=not LEAN):
                for side in ("prompt", "chosen", "rejected"):
                    texts = batch.column(side).flatten().field("content")
                    for text in (texts.dictionary if LEAN else pc.unique(texts)).to_pylist():
                        if text not in seen:
                            seen.add(text)
                            blake2b(text.encode(), digest_size=16).hexdigest()
{TAIL}
"""
SIDES = {"validate": OURS, "read": f"LEAN = False\n{READ}", "lean": f"LEAN = True\n{READ}"}


def real(folder: Path) -> Iterator[dict[str, Any]]:
    """AlpacaEval's annotations, their preferences as log-odds."""
    columns = ["prompt", "response", "generator", "preference"]
    with pq.ParquetFile(folder / "alpaca_eval2_pref.parquet") as file:
        for row in (row for batch in file.iter_batches(columns=columns) for row in batch.to_pylist()):
            p = min(max(row["preference"] - 1, 1e-6), 1 - 1e-6)
            if row["response"].strip():
                yield {
                    "prompt": row["prompt"],
                    "completion": row["response"],
                    "model": row["generator"],
                    "score": math.log(p / (1 - p)),
                }


def made_up(prompts: int = 643, replies: int = 57) -> Iterator[dict[str, Any]]:
    """As many prompts and replies of about the same sizes, of made-up words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5_000)]
    for prompt in range(prompts):
        question = f"{prompt}: " + " ".join(draw.choices(words, k=25))
        for model in range(replies):
            answer = " ".join(draw.choices(words, k=int(draw.lognormvariate(4.9, 0.7)) + 1))
            yield {"prompt": question, "completion": answer, "model": f"m{model}", "score": draw.gauss(-6, 3)}


def timed(code: str, dataset: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of a process."""
    done = subprocess.run([sys.executable, "-c", code, str(dataset)], stdout=subprocess.PIPE, text=True, check=True)
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: three runs")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each size (5; 3 with --quick)")
    options = parser.parse_args()
    from mmpo.pipeline import BuildOptions, build

    folder = Path(os.environ.get("MMPO_REAL_DATA", "/nowhere"))
    is_real = (folder / "alpaca_eval2_pref.parquet").is_file()
    rows = list(real(folder) if is_real else made_up())
    runs = options.runs or (3 if options.quick else 5)
    ratios: dict[str, float] = {}
    peaks: dict[str, float] = {}
    print(
        f"{'AlpacaEval' if is_real else 'made-up texts'}; {os.cpu_count()} cores; {runs} runs of each in turn; median (min - max)"
    )
    with tempfile.TemporaryDirectory() as scratch:
        prompts = list(dict.fromkeys(row["prompt"] for row in rows))
        tenth = set(prompts[::10])
        for name, chosen in (
            ("one pair a prompt", made_up(25_000 if options.quick else 100_000, 2)),
            ("a tenth", (row for row in rows if row["prompt"] in tenth)),
            ("whole", iter(rows)),
        ):
            source, out = Path(scratch) / "rows.jsonl", Path(scratch) / name.replace(" ", "-")
            with source.open("w") as file:
                file.writelines(json.dumps(row) + "\n" for row in chosen)
            pairs = sum(build(source, out, options=BuildOptions(format="jsonl"))["pairs"].values())
            timed(OURS, out)  # warms the cache of files
            results: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
            for _ in range(runs):
                for side, code in SIDES.items():
                    results[side].append(timed(code, out))
            peaks[name] = statistics.median(memory for _, memory in results["validate"])
            print(f"{name}: {pairs:,} pairs")
            for side, times in results.items():
                print(f"  {side:<9} CPU {spread([s for s, _ in times])} s  peak {statistics.median(m for _, m in times):.0f} MiB")
            for side in ("read", "lean"):
                each = [ours / theirs for (ours, _), (theirs, _) in zip(results["validate"], results[side], strict=True)]
                ratios[f"vs_{side}{'_one_pair' if name == 'one pair a prompt' else ''}"] = statistics.median(each)
                print(f"  validate / {side}: {spread(each)}")
    ratios["memory_whole_over_tenth"] = peaks["whole"] / peaks["a tenth"]
    print("aims: vs_read <= 1.2; peak under 250 MiB, and flat")
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
