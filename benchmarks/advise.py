"""Is advice to be had in a minute, and is it right where the answer is planted?

    python benchmarks/advise.py [--part speed|planted|normalisation] [--quick] [--json]

speed: CPU seconds of all objectives on 17,503 pairs of arena grades (data/arena_grades.jsonl.gz), features given, 5 seeds; the aim is 60.
planted: of ten data sets each how often advice says that margins add accuracy or calibration, at R² .97, at .1 and with shuffled margins.
normalisation: of ten data sets each how often the normalisation that is planted is named. One thread.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support")]

import numpy as np  # noqa: E402
from folders import feedback_folder  # noqa: E402
from planted import planted_rows, planted_table, with_raters  # noqa: E402

from mmpo.pipeline import BuildOptions, build, load_pairs  # noqa: E402
from mmpo.train.advise import advise, bag, evidence_of  # noqa: E402


def speed(folder: Path, quick: bool) -> dict[str, float]:
    """All that advice does once it has features."""
    build(HERE.parent / "data" / "arena_grades.jsonl.gz", folder / "arena", options=BuildOptions(format="jsonl", scale=(1, 10)))
    table = load_pairs(folder / "arena")
    found, _ = evidence_of(table, "arena")
    values = bag(found)(np.arange(len(found.texts)))
    begun = time.process_time()
    advise(table, values=values, seeds=1 if quick else 5)
    seconds = time.process_time() - begun
    print(f"{table.num_rows:,} pairs, {values.shape[1]} features: {seconds:.1f} CPU s")
    return {"cpu_seconds": seconds}


def planted(folder: Path, quick: bool) -> dict[str, float]:
    """Data sets with 120 known features."""
    ratios = {}
    for name, share in (("explained", 0.97), ("noise", 0.1), ("shuffled", 0.97)):
        said = []
        for seed in range(2 if quick else 10):
            table, values = planted_table(share, seed, folder / f"{name}-{seed}", shuffled=name == "shuffled")
            said.append(any(value is True for value in advise(table, values=values)["margins_add"].values()))
        print(f"{name}, R² {share}: margins add accuracy or calibration in {sum(said)} of {len(said)} data sets")
        ratios[f"add_{name}"] = sum(said) / len(said)
    return ratios


def normalisation(folder: Path, quick: bool) -> dict[str, float]:
    """Raters of one scale, of two, and shifted ones."""
    ratios = {}
    for how, right in (("same", "none"), ("scales", "zscore"), ("shifted", "zscore")):
        named = []
        for seed in range(2 if quick else 10):
            rows = with_raters(planted_rows(0.7, seed=seed, prompts=120)[0], how, seed)
            named.append(advise(feedback_folder(folder / f"{how}-{seed}", rows))["recommended"]["normalise"] == right)
        print(f"{how}: {right} is named in {sum(named)} of {len(named)} data sets")
        ratios[f"named_{how}"] = sum(named) / len(named)
    return ratios


PARTS = {"speed": speed, "planted": planted, "normalisation": normalisation}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="this part only; may be given again (all)")
    parser.add_argument("--quick", action="store_true", help="about a minute: one seed, two data sets")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.part or PARTS:
            ratios |= PARTS[name](Path(folder), options.quick)
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
