"""The judging part of a recipe: candidates → judges' grades → what the dataset is built from."""

import dataclasses
from pathlib import Path
from typing import Any

from mmpo.annotate.judge import MODES, find_rubrics, judges_of
from mmpo.cli.commands.build import run_build
from mmpo.cli.commands.judge import run_judges
from mmpo.cli.recipe.model import Recipe
from mmpo.cli.recipe.stages import Stages
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.errors import PartialResult

OF_THE_INPUT = ("format", "columns", "scale", "fix_known_defects", "rater", "kind", "max_rejects", "workers")
"""Build options that say how files are read; the others say what is made of the grades."""


def judged(recipe: Recipe, stages: Stages, inputs: list[str]) -> tuple[list[Any], BuildOptions, list[str]]:
    """What the dataset is built from: sources, options, and the digests of the inputs; without judges, as the recipe has it.

    With judges, the candidates are built and judged first. Unless the recipe narrows the evidence itself, the pairs come of the judges'
    grades alone. Raises PartialResult where the judges did not get through: the same command again goes on.
    """
    assert recipe.build is not None
    if recipe.judge is None:
        return list(recipe.inputs), recipe.build, inputs
    build, candidates, graded = recipe.build, recipe.out / "candidates", recipe.out / "judged"
    reading = BuildOptions(**{name: getattr(build, name) for name in OF_THE_INPUT}, feedback_only=True)
    key = {"options": dataclasses.asdict(reading), "inputs": inputs}
    stages.do("candidates", key, lambda: run_build("candidates", recipe.inputs, candidates, reading), candidates)
    made_of = (candidates / "manifest.json").read_text(encoding="utf-8")
    key = {"options": dataclasses.asdict(recipe.judge), "judges": recipe.judges, "candidates": made_of}
    stages.do("judge", key, lambda: _judge(recipe, candidates, graded), graded)
    own = {field.name: field.default for field in dataclasses.fields(BuildOptions) if field.name in OF_THE_INPUT}
    own |= {"format": "feedback", "columns": {}, "workers": build.workers, "max_rejects": build.max_rejects}
    options = dataclasses.replace(build, **own)
    aspects = [rubric.name for rubric in find_rubrics(recipe.judge.rubrics)]
    if build.score == "overall" and "overall" not in aspects:
        options = dataclasses.replace(options, score=aspects[0] if len(aspects) == 1 else "mean")
    if build.evidence == "auto" and build.raters is None and build.kinds is None:
        raters = tuple(judge.name for judge in judges_of(recipe.judge, recipe.judges))
        evidence = MODES[recipe.judge.mode].gives
        options = dataclasses.replace(options, evidence=evidence, raters=raters)
    return [graded], options, [(graded / "manifest.json").read_text(encoding="utf-8")]


def _judge(recipe: Recipe, candidates: Path, out: Path) -> dict[str, Any]:
    assert recipe.judge is not None
    summary = run_judges(candidates, out, recipe.judge, recipe.judges)
    if not summary["finished"]:
        raise PartialResult("the judges did not get through; the same command again goes on where they stopped")
    return summary
