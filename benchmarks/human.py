"""How far do people agree, which way of merging them foretells what other people say, and are margin_se's intervals honest?

    python benchmarks/human.py [--part agreement|aggregation|coverage] [--data FOLDER] [--quick] [--json]

Each part is a file of its own, benchmarks/human_<part>.py. The first two read real grades from the folder that --data or the environment
variable MMPO_REAL_DATA names, and say so when there is none.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / folder) for folder in ("support", "support/argilla")]

import human_aggregation  # noqa: E402
import human_agreement  # noqa: E402
import human_coverage  # noqa: E402
import human_speed  # noqa: E402


class Part(NamedTuple):
    """run: of the folder of real files and whether to be quick; prints its tables and returns its ratios. real: whether it reads them."""

    run: Callable[[Path, bool], dict[str, float]]
    real: bool


PARTS = {
    "agreement": Part(human_agreement.run, True),
    "aggregation": Part(human_aggregation.run, True),
    "coverage": Part(human_coverage.run, False),
    "speed": Part(human_speed.run, False),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="this part only; may be given again (all)")
    parser.add_argument("--data", type=Path, default=os.environ.get("MMPO_REAL_DATA"), help="folder of real files (MMPO_REAL_DATA)")
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer draws, seeds and panels")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    for name in options.part or PARTS:
        part = PARTS[name]
        if part.real and not (options.data and options.data.is_dir()):
            print(f"{name}: skipped, neither --data nor MMPO_REAL_DATA names a folder of real files")
            continue
        ratios |= part.run(options.data, options.quick)
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
