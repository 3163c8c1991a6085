"""`mmpo run RECIPE.yaml`: all stages that a recipe names, once or in rounds."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.output import AsJson, print_json, say
from mmpo.cli.recipe.model import STAGES, Recipe, load_recipe, schema
from mmpo.cli.recipe.models import inputs_of, run_stages
from mmpo.cli.recipe.rounds import run_rounds
from mmpo.cli.recipe.stages import Stages
from mmpo.pipeline.errors import UserError


def run(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the recipe and leave.")] = False,
    print_schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run all stages that a recipe names; the same command again does only what is left or has changed.

    With `rounds` they are done again and again, each time on what the policy of the round before writes (docs/loop.md). Example:
    mmpo run recipes/quickstart.yaml --set training.max_steps=20
    """
    if print_schema:
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return
    if recipe is None:
        raise UserError("name a recipe, for example recipes/quickstart.yaml")
    loaded = load_recipe(recipe, overrides or [])
    if check:
        say(f"{recipe}: ok: {plan(loaded)}")
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a recipe runs in one process, and a launcher has started several: build the data first (`mmpo build`), then "
            "launch `-m mmpo.cli train`"
        )
    summary = run_recipe(loaded)
    print_json(summary, as_json)


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Do the stages of a checked recipe; returns {"out", "dataset", "page", "runs": {name: measures}}, and of rounds "rounds"."""
    inputs = inputs_of(recipe)
    stages = Stages(recipe.out, recipe.resolved)
    return run_rounds(recipe, stages, inputs) if recipe.rounds else run_stages(recipe, stages, inputs).summary


def plan(recipe: Recipe) -> str:
    """The stages of a recipe in their order, in words."""
    named = [name for name in (*STAGES, "build") if getattr(recipe, name)]
    named += [f"train {name}" for name in recipe.runs] + ["evaluate"] * bool(recipe.runs)
    return " → ".join(named) + (f", {recipe.rounds} rounds" if recipe.rounds else "")
