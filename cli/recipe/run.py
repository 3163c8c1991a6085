"""`mmpo run RECIPE.yaml`: pairs → checks → trained models → measures → a table and a page that compare them."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.commands.build import run_build
from mmpo.cli.output import AsJson, print_json, print_rows, say, shown
from mmpo.cli.recipe.judging import judged
from mmpo.cli.recipe.model import Recipe, load_recipe, schema
from mmpo.cli.recipe.stages import Stages, write_json
from mmpo.pipeline.errors import UserError
from mmpo.train.objective import parse_terms

SHOWN = ("accuracy", "ece_target", "ece_label")
COMPARED = ("accuracy", "cross_entropy", "nll")
"""The measures of models, and those of differences, in the tables that a run prints; the page and summary.json have all."""


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

    Example: mmpo run recipes/quickstart.yaml --set training.max_steps=20
    """
    if print_schema:
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return
    if recipe is None:
        raise UserError("name a recipe, for example recipes/quickstart.yaml")
    loaded = load_recipe(recipe, overrides or [])
    if check:
        say(f"{recipe}: ok")
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a recipe runs in one process, and a launcher has started several: build the data first (`mmpo build`), then "
            "launch `-m mmpo.cli train`"
        )
    summary = run_recipe(loaded)
    print_json(summary, as_json)


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Do the stages of a checked recipe; returns {"out", "dataset", "page", "runs": {name: measures}}."""
    inputs = _digests(recipe)
    stages = Stages(recipe.out, recipe.resolved)
    dataset = recipe.data or recipe.out / "pairs"
    built = None
    if recipe.build is not None:
        sources, options, inputs = judged(recipe, stages, inputs)
        dataset = sources[0] if recipe.judge and recipe.build.feedback_only else dataset
        if dataset != sources[0]:
            key = {"options": dataclasses.asdict(options), "inputs": inputs}
            built = stages.do("build", key, lambda: run_build("build", sources, dataset, options), dataset)
        if options.feedback_only:
            say(f"feedback: {dataset}")
            return {"out": str(recipe.out), "dataset": str(dataset), "page": None, "runs": {}}
    _validate(recipe, dataset)
    made_of = _fingerprint(dataset)
    with _sharing_states(recipe):
        trained = {name: _train(recipe, stages, name, dataset, made_of) for name in recipe.runs}
        gamma = recipe.measures.gamma
        if gamma is None:
            # The same targets for every model, those of the first one trained by MMPO: else the measures say nothing.
            gamma = next((float(trained[name]["gamma"]) for name in trained if "mmpo" in parse_terms(recipe.runs[name].loss)), None)
        first = sorted(recipe.runs, key=lambda name: name != recipe.measures.against)  # what the others are compared with
        found = {name: _evaluate(recipe, stages, name, dataset, gamma, trained) for name in first}
    measured = {name: found[name] for name in recipe.runs}
    return _compare(recipe, dataset, built, trained, measured)


def _digests(recipe: Recipe) -> list[str]:
    """What the build reads, named and digested; fails before anything is written where an input is missing."""
    if recipe.build is None:
        if recipe.data is None or not (recipe.data / "manifest.json").is_file():
            raise UserError(f"data: {recipe.data} is not a dataset folder; `mmpo build` writes one")
        return []
    from mmpo.pipeline.storage import digest, resolve_inputs

    files = resolve_inputs(recipe.inputs, recipe.build.format, encoding=recipe.build.encoding, separator=recipe.build.sep)
    return [f"{Path(str(file.path)).name} {digest(file.path)}" for file in files]


def _fingerprint(dataset: Path) -> str:
    return (dataset / "manifest.json").read_text(encoding="utf-8")


def _validate(recipe: Recipe, dataset: Path) -> None:
    from mmpo.pipeline import validate

    say("[validate]")
    summary = validate(dataset, gamma=recipe.checks.gamma, strict=recipe.checks.strict)
    write_json(recipe.out / "validation.json", summary)
    counts = {status: sum(check["status"] == status for check in summary["checks"]) for status in ("pass", "warn", "fail")}
    for check in summary["checks"]:
        if check["status"] != "pass":
            say(f"  {check['status']}: {check['name']}: {check['message']}")
    say(f"{counts['pass']} checks passed, {counts['warn']} warned, {counts['fail']} failed")
    if not summary["ok"]:
        raise UserError(f"{dataset} does not pass its checks; all of them stand in {recipe.out / 'validation.json'}")


def _sharing_states(recipe: Recipe) -> AbstractContextManager[None]:
    """Within, runs above the same frozen layers compute those once for all of them."""
    if all(options.top_layers is None for options in recipe.runs.values()):
        return nullcontext()
    from mmpo.train.model import sharing_states

    return sharing_states()


def _train(recipe: Recipe, stages: Stages, name: str, dataset: Path, made_of: str) -> dict[str, Any]:
    from mmpo.train import train_policy, train_reward

    folder = recipe.out / "models" / name
    options = dataclasses.replace(recipe.runs[name], data=str(dataset), out=str(folder))
    work = train_policy if options.kind == "policy" else train_reward
    return stages.do(f"train-{name}", {"options": dataclasses.asdict(options), "dataset": made_of}, lambda: work(options), folder)


def _evaluate(
    recipe: Recipe, stages: Stages, name: str, dataset: Path, gamma: float | str | None, trained: dict[str, Any]
) -> dict[str, Any]:
    """A model's measures; its folder with the page of the evaluation stands beside the models."""
    from mmpo.train import evaluate

    kind, measures = recipe.runs[name].kind, recipe.measures
    folder = recipe.out / "evaluation"
    other = measures.against if measures.against != name else None
    options: dict[str, Any] = {"split": measures.split, "gamma": gamma, "bootstrap": measures.bootstrap, "seed": measures.seed}

    def work() -> dict[str, Any]:
        against = None if other is None else folder / other
        summary = evaluate(kind, trained[name]["out"], dataset, **options, against=against, out=folder / name)
        write_json(folder / f"{name}.json", summary)
        return summary

    key = {"model": trained[name], **options, "against": other and trained[other], "dataset": _fingerprint(dataset)}
    return stages.do(f"evaluate-{name}", key, work, folder / name)


def _compare(
    recipe: Recipe,
    dataset: Path,
    built: dict[str, Any] | None,
    trained: dict[str, Any],
    measured: dict[str, Any],
) -> dict[str, Any]:
    from mmpo.pipeline.report import write_comparison, write_report

    write_report(dataset, recipe.out / "dataset.html")
    summary: dict[str, Any] = {"out": str(recipe.out), "dataset": str(dataset), "page": None, "runs": measured}
    if measured:
        runs = [
            {"name": name, "kind": options.kind, "loss": options.loss, **trained[name], **measured[name]}
            for name, options in recipe.runs.items()
        ]
        summary["page"] = str(write_comparison(runs, recipe.out / "comparison.html", recipe.title))
        print_measures(recipe, measured)
    write_json(recipe.out / "summary.json", {"build": built, "trained": trained, **summary})
    say(f"table:   {recipe.out / 'summary.json'}")
    say(f"page:    {summary['page'] or recipe.out / 'dataset.html'}")
    say(f"dataset: {dataset}    (datasets.load_dataset({str(dataset)!r}) opens it)")
    return summary


def print_measures(recipe: Recipe, measured: Mapping[str, Any]) -> None:
    """Every run's measures with intervals, and what one of them is ahead of the others where the recipe asks for it."""
    some = next(iter(measured.values()))
    what = f"{some['prompts']:,} prompts, {some['pairs']:,} pairs, {some['ties']:,} ties; γ {shown(some['gamma'])}"
    columns = {"run": "run", **{name: name for name in SHOWN}}
    title = f"{recipe.title}: {recipe.measures.split} pairs ({what}), 95% intervals over prompts"
    named = [{"run": name, **found} for name, found in measured.items()]
    longest = [{"run": f"({row['name']})", **row} for row in some.get("baselines", ()) if row["name"] == "longest wins"]
    print_rows(title, named + longest, columns)
    one = recipe.measures.against
    rows = []
    for name, found in measured.items():
        if "against" in found:
            of = {row["measure"]: row for row in found["against"].get("scaled", found["against"]["raw"])}
            rows.append({"": f"{one} − {name}"} | _turned(of, COMPARED))
    title = f"{one} less each other one, both at their own temperatures, 95% intervals over prompts"
    print_rows(title, rows, {"": "", **{name: name for name in COMPARED}})


def _turned(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Differences the other way round, with their intervals."""
    found: dict[str, Any] = {}
    for name in names:
        value, bounds = (rows.get(name, {}).get(key) for key in ("difference", "difference_95"))
        found |= {name: None if value is None else -value, f"{name}_95": bounds and [-bounds[1], -bounds[0]]}
    return found
