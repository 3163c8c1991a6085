"""README says of the demo what the demo found, as docs/demo.json has it; and what `make demo` is without the language model."""

import json
import re
from pathlib import Path

from demo_figures import COMPARED, END, KEPT, MEASURES, START, sentence

from mmpo.cli.recipe.model import load_recipe

ROOT = Path(__file__).resolve().parents[1]


def test_readme_holds_the_figures_of_the_demo() -> None:
    found, text = json.loads(KEPT.read_text(encoding="utf-8")), (ROOT / "README.md").read_text(encoding="utf-8")
    assert START + sentence(found) + END in text
    printed = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    transcript = printed[printed.index("$ make demo") :]

    def line(start: str) -> str:
        [one] = [line for line in transcript.splitlines() if re.match(rf"{re.escape(start)}( *│|$| \()", line)]
        assert len(one) <= 100
        return one

    def shown(value: float, low: float, high: float) -> str:
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    for name, run in found["runs"].items():
        for measure in MEASURES:
            assert shown(run[measure], *run[f"{measure}_95"]) in line(name)
    for name, ahead in found["mmpo_minus"].items():
        for measure in COMPARED:
            assert shown(*ahead[measure]) in line(f"mmpo − {name}")
    for count in (found["prompts"], found["pairs"], found["ties"]):
        assert f"{count:,}" in line("Quickstart: test pairs")


def test_make_kills_runs_every_test_that_asks_how_often_to_kill() -> None:
    [named] = re.findall(r"^kills:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asking = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py") if '"MMPO_KILLS"' in path.read_text("utf-8")}
    asking.discard("tests/test_demo_figures.py")
    assert len(asking) == 9 and asking == {word for word in named.split() if word.startswith("tests/")}


def test_the_demo_without_the_language_model_is_a_recipe_too() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [overrides] = re.findall(r"^TINY = (.*)$", makefile, re.MULTILINE)
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", overrides.split())
    assert {run.model for run in recipe.runs.values()} == {"tiny"} and all(
        run.top_layers is run.layers is run.ask is None for run in recipe.runs.values()
    )
    assert next(iter(load_recipe(ROOT / "recipes" / "quickstart.yaml").runs.values())).model == "models/smollm2"
