"""The commands that recipes name in their first lines: they parse, and ask for what the recipe below them asks for."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from mmpo.cli.main import make_app
from mmpo.cli.recipe.model import load_recipe
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.options import options_from
from mmpo.train.options import TrainOptions

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LARGE = sorted(path for name in ("gemma-7b", "llama-3-8b") for path in RECIPES.glob(f"paper-{name}-*.yaml"))
REWARD = sorted(RECIPES.glob("paper-*-reward.yaml"))
LAUNCH = ["accelerate", "launch", "--config_file", "recipes/accelerate/fsdp.yaml", "--num_processes", "8", "-m", "mmpo.cli"]


def header(path: Path) -> str:
    """The comments above the title."""
    return path.read_text(encoding="utf-8").partition("\ntitle:")[0]


def commands(path: Path) -> list[list[str]]:
    """The indented commands of a header, each in words; a line that ends in a backslash goes on."""
    lines = [line.removeprefix("#   ") for line in header(path).splitlines() if line.startswith("#   ")]
    return [shlex.split(line) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]


def parsed(words: list[str]) -> dict[str, Any]:
    """What a command of mmpo is given, by parameter."""
    command: Any = typer.main.get_command(make_app({words[0]})).commands[words[0]]  # type: ignore[attr-defined]
    return {name: value for name, value in command.make_context(words[0], words[1:]).params.items() if value is not None}


def options(kind: type, given: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return options_from(kind, {name: value for name, value in given.items() if name in names}, flags=True)


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_a_model_too_large_for_one_device_comes_with_the_commands_for_several(path: Path) -> None:
    """16 bytes a parameter: 8.54 billion of Gemma 7B and 8.03 billion of Llama 3 8B make 137 and 128 GB."""
    recipe = load_recipe(path)
    build, launch = commands(path)
    assert build[0] == "mmpo" and launch[: len(LAUNCH)] == LAUNCH
    given = parsed(build[1:])
    assert given["sources"] == recipe.inputs
    assert options(BuildOptions, given) == recipe.build
    asked = parsed(launch[len(LAUNCH) :])
    first, other = recipe.runs
    asked["kind"] = str(asked["kind"].value)
    assert options(TrainOptions, asked) == dataclasses.replace(recipe.runs[first], data=str(given["out"]), out=asked["out"])
    assert Path(asked["out"]) == recipe.out / "models" / first
    text = header(path)
    assert f"{137 if 'gemma' in path.stem else 128} GB" in text
    difference = {"loss": "dpo", "gamma": "auto"}
    assert dataclasses.replace(recipe.runs[first], **difference) == recipe.runs[other]
    assert f"The run {other}: --loss dpo, no --gamma, --out {recipe.out / 'models' / other}" in text


@pytest.mark.parametrize("path", REWARD, ids=lambda path: path.stem)
def test_a_reward_recipe_says_what_a_base_model_lacks(path: Path) -> None:
    assert "no chat template" in header(path)
    assert "--set training.chat_template=plain" in header(path)
    assert {run.chat_template for run in load_recipe(path, ["training.chat_template=plain"]).runs.values()} == {"plain"}
