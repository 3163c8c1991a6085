"""What is said of `make demo`: docs/demo.json, the tables in docs/quickstart.md, README's picture and the sentence
below it.

    python tests/support/demo_figures.py out/quickstart        (`make demo-figures` does the demo and this)

`figures` takes from the run's summary what is kept; `sentence` says it. tests/test_demo_figures.py holds README to both.
"""

import json
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

from mmpo.cli.recipe.model import load_recipe
from mmpo.cli.recipe.models import print_measures

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "demo.json"
PICTURE = ROOT / "docs" / "images" / "calibration.png"
MEASURES = ("accuracy", "ece_target", "ece_label")
COMPARED = ("accuracy", "cross_entropy", "nll")
START, END = "<!-- of the demo's figures: `make demo-figures` -->\n", "<!-- end -->\n"


def main(out: Path) -> None:
    """Write all of it from the folder of a run."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    found = figures(summary)
    KEPT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(out / "comparison.calibration-reward.png", PICTURE)
    said = StringIO()
    with redirect_stderr(said):
        print_measures(load_recipe(ROOT / "recipes" / "quickstart.yaml"), summary["runs"])
    tables = "".join(f"{line.rstrip()}\n" for line in said.getvalue().splitlines())
    _replace(ROOT / "docs" / "quickstart.md", r"(?s)Quickstart: test pairs.*?(?=page: )", tables)
    _replace(ROOT / "README.md", f"(?s){re.escape(START)}.*?{re.escape(END)}", START + sentence(found) + END)


def _replace(page: Path, what: str, by: str) -> None:
    page.write_text(re.sub(what, lambda _: by, page.read_text(encoding="utf-8"), count=1), encoding="utf-8")


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of summary.json, to six decimals."""
    runs = summary["runs"]
    of = {name: {key: run[key] for m in MEASURES for key in (m, f"{m}_95")} for name, run in runs.items()}
    ahead = {}
    for name, run in runs.items():
        if "against" in run:
            raw, scaled = ({row["measure"]: row for row in run["against"][kind]} for kind in ("raw", "scaled"))
            ahead[name] = {**{m: _turned(scaled[m]) for m in COMPARED}, "ece_target": _turned(raw["ece_target"])}
    one = next(iter(runs.values()))
    shared = {name: one[name] for name in ("gamma", "prompts", "pairs", "ties")} | {"longest_wins": one["length"]["longest_wins"]}
    margins = {name: [row["mean_q"] for row in run["by_margin"]] for name, run in runs.items()}
    targets = [row["mean_p"] for row in one["by_margin"]]
    return _rounded({**shared, "runs": of, "mmpo_minus": ahead, "targets_by_margin": targets, "predictions_by_margin": margins})


def _turned(row: Mapping[str, Any]) -> list[float]:
    """The difference the other way round, and its interval."""
    low, high = row["difference_95"]
    return [-row["difference"], -high, -low]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def sentence(found: Mapping[str, Any]) -> str:
    """What margins bought on these pairs and what they did not; the words follow from the intervals."""
    ahead, runs, n = found["mmpo_minus"], found["runs"], found["prompts"]
    controls = ("matched-smoothing", "shuffled-margins")
    ece = {name: f"{run['ece_target']:.3f}" for name, run in runs.items()}
    of_controls = f"matched smoothing ({ece[controls[0]]}) and shuffled margins ({ece[controls[1]]})"
    than = f"than Bradley–Terry's (calibration error {ece['mmpo']} against {ece['bradley-terry']})"
    if ahead["bradley-terry"]["ece_target"][2] >= 0:
        calibrated = f"MMPO's probabilities can be taken at their word no more {than}"
    elif all(ahead[name]["ece_target"][2] < 0 for name in controls):
        calibrated = f"MMPO's probabilities can be taken at their word, more {than} and than those of {of_controls}"
    else:
        calibrated = (
            f"MMPO's probabilities can be taken at their word, more {than}, and so can those of {of_controls}: softness bought that"
        )
    accuracy = [ahead[name]["accuracy"] for name in ("bradley-terry", *controls)]
    if all(value[1] > 0 for value in accuracy[1:]):
        verdict = "the margins themselves bought accuracy"
    elif any(value[2] < 0 for value in accuracy[1:]):
        verdict = "the margins themselves cost accuracy"
    else:
        verdict = f"the margins themselves bought no accuracy that {n} prompts could show"
    over = zip(accuracy, ("Bradley–Terry", *(name.replace("-", " ") for name in controls)), strict=True)
    points = ", ".join(f"{_points(value)} ({_points(low)} to {_points(high)}) over {name}" for (value, low, high), name in over)
    low, high = (f"{limit(run['accuracy'] for run in runs.values()):.3f}" for limit in (min, max))
    longer = f"always taking the longer answer {found['longest_wins']:.3f}"
    if max(run["accuracy_95"][0] for run in runs.values()) <= found["longest_wins"]:
        learned = f" Accuracy is {low} to {high}, {longer}: none is surely more accurate than that."
    else:
        learned = f" Accuracy is {low} to {high}, {longer}."
    text = f"On the demo's {n} held-out prompts {calibrated}; {verdict} (in points, {points}).{learned}"
    return fill(text.replace("(-", "(−").replace(" -", " −"), 150, break_on_hyphens=False) + "\n"


def _points(value: float) -> str:
    return f"{round(100 * value, 1) or 0:+.1f}"  # no −0.0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
