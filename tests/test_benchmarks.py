"""Every benchmark can be started: what it imports is where it looks for it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = [path.name for path in sorted(BENCHMARKS.glob("*.py")) if "ArgumentParser(" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_starts(script: str) -> None:
    command = [sys.executable, str(BENCHMARKS / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_the_page_of_the_claims_is_that_of_their_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from claims_page import write_page

    (tmp_path / "images").mkdir()
    docs = BENCHMARKS.parent / "docs"
    page = write_page(json.loads((docs / "claims.json").read_text(encoding="utf-8")), tmp_path)
    assert page.read_text(encoding="utf-8") == (docs / page.name).read_text(encoding="utf-8"), "python benchmarks/claims.py --page"


def test_no_name_in_the_plot_of_the_claims_covers_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import claims_page

    drawn = []

    def draw(name: str, caption: str, plot: Callable[[Any], None], size: tuple[float, float]) -> None:
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        plot(axes)
        FigureCanvasAgg(figure).draw()
        drawn.extend((axes.bbox, [text.get_window_extent() for text in axes.texts]))

    monkeypatch.setattr(claims_page, "draw", draw)
    claims_page._by_r2(json.loads((BENCHMARKS.parent / "docs/claims.json").read_text(encoding="utf-8")))
    axes, names = drawn
    assert len(names) > 5 and all(name.y0 >= axes.y0 for name in names)
    assert not [pair for pair in combinations(names, 2) if pair[0].overlaps(pair[1])]


def test_names_on_the_page_of_the_claims_keep_their_hyphens() -> None:
    """A minus stands before digits alone."""
    page = (BENCHMARKS.parent / "docs/when-margins-help.md").read_text(encoding="utf-8")
    assert "mqm-ende" in page and "noise-aware" in page
    assert re.findall(r"\w−\w", page) == []


def test_the_grounds_for_the_default_are_the_figures_of_the_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from claims_page import mmpo, signed

    docs = BENCHMARKS.parent / "docs"
    sets = json.loads((docs / "claims.json").read_text(encoding="utf-8"))["sets"]
    rows = [{name: mmpo(summary, mean) for name, summary in sets.items()} for mean in (0.75, 0.9)]

    def mean(measure: str, by: float, digits: int) -> str:
        values = [by * np.mean([row["minus_bradley_terry"][measure][0] for row in one.values()]) for one in rows]
        return " and ".join(signed(value, digits) for value in values)

    def better(measure: str, sign: int) -> str:
        found = [
            [name for name, row in one.items() if min(sign * end for end in row["minus_matched"][measure][1:]) > 0] for one in rows
        ]
        return ", ".join(f"with {at} on {' and '.join(names) or 'none'}" for at, names in zip((".75", ".9"), found))

    said = (
        f"on {len(sets)} real graded sets it and .9 can't be told apart ([when margins help](when-margins-help.md): "
        f"{mean('accuracy', 100, 2)} points of accuracy over Bradley–Terry, likelihood loss {mean('nll', 1, 3)} nats; against matched "
        f"smoothing accuracy is separably better {better('accuracy', 1)}, the likelihood {better('nll', -1)})"
    )
    assert said in " ".join((docs / "training.md").read_text(encoding="utf-8").split())


def test_what_the_claims_say_follows_from_their_intervals() -> None:
    from mmpo.train.advise import margins_add

    claims = json.loads((BENCHMARKS.parent / "docs/claims.json").read_text(encoding="utf-8"))
    assert claims["sets"]
    for name, summary in claims["sets"].items():
        assert summary["margins_add"] == margins_add(summary["effects"][-1]), name


def test_the_page_has_pretrained_models_with_intervals_and_says_what_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from claims_pretrained import compared
    from claims_pretrained_page import page

    assert "This part has not been run" in page(None)
    rows = [
        {
            "set": "alpaca", "way": "lora", "objective": objective, "seed": seed, "epoch": epoch, "pairs": 40,
            "accuracy": 0.7 + (objective == "mmpo@0.9") * 0.01 * (seed + 1), "nll": 0.6 * epoch, "nll_scaled": 0.6, "ece": 0.1,
            "ece_scaled": 0.05, "validation_nll_scaled": 0.6 * epoch,
        }
        for objective in ("bt", "mmpo@0.9", "matched@0.9", "shuffled@0.9") for seed in range(3) for epoch in (1, 2)
    ]  # fmt: skip
    said = page({"rows": rows, "compared": compared(rows)})
    # +1, +2 and +3 points: mean 2, standard error 1/√3, t with 2 degrees of freedom 4.303
    assert "| best | .9 | Bradley–Terry | +2.0 (−0.5 to +4.5) | +0.000 (+0.000 to +0.000) |" in said
    assert "| last | .9 | shuffled |" in said
    assert "**alpaca, reward model by LoRA**: 3 seeds, 40 training pairs, 2 epochs" in said
    assert "Not run: alpaca (reward model, its two uppermost layers), alpaca (policy), arena" in said
    assert "+2.0 (one seed)" not in said
    assert "can show nothing either way:\nalpaca, reward model by LoRA (40 pairs, accuracy to ±2.5 points)." in said
    assert "can show nothing" not in page({"rows": [{**row, "pairs": 100} for row in rows], "compared": compared(rows)})
    one = [row for row in rows if row["seed"] == 0]
    assert "+1.0 (one seed)" in page({"rows": one, "compared": compared(one)})
