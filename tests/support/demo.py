"""`make demo-judge`: recipes/ai-feedback.yaml against simulated judges on this machine; no key, no download, no cost.

    python tests/support/demo.py [--out out/ai-feedback] [--set KEY=VALUE ...]

The judges play: each sees GPT-4's grades of data/arena_grades.jsonl.gz as the truth, through a scale, a liking for what is shown first and
noise of its own. So the run can be checked: mmpo must find those again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from openai_server import serving

ROOT = Path(__file__).resolve().parent.parent.parent
GRADES = ROOT / "data" / "arena_grades.jsonl.gz"
JUDGES = {
    "careful": {"scale": 0.8, "bias": 0.2, "noise": 0.4, "tau": 0.6},
    "hasty": {"scale": 1.3, "bias": 0.9, "noise": 1.0, "tau": 0.6},
}
"""How each judge plays, in grades: see simulated_judge.JudgeModel."""


def main(arguments: list[str] | None = None) -> int:
    """Start the judges, run the recipe, compare the judges; the first exit status that is not 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", default="out/ai-feedback")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    plan = {"models": JUDGES, "latency": {"median": 0.03, "p99": 0.3}}
    with serving(plan, grades=GRADES) as server:
        sets = [f"out={options.out}", f"judge.base_url={server.base_url}", *options.sets]
        flags = [part for value in sets for part in ("--set", value)]
        status = _mmpo("run", str(ROOT / "recipes" / "ai-feedback.yaml"), *flags)
        return status or _mmpo("agree", f"{options.out}/judged", "--against", "gpt-4", "--bootstrap", "200")


def _mmpo(*words: str) -> int:
    print("$ mmpo " + " ".join(words), file=sys.stderr, flush=True)
    return subprocess.run([sys.executable, "-c", "from mmpo.cli.main import main; main()", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
