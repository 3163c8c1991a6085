"""From what is graded to a dataset, trained models, their measures, a table and a page that compare them: one pass over a recipe."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpo.cli.commands.data.build import run_build
from mmpo.cli.commands.data.report import write_page
from mmpo.cli.output import print_rows, say, shown
from mmpo.cli.recipe.feedback import Graded, graded, manifest_text
from mmpo.cli.recipe.model import Recipe
from mmpo.cli.recipe.stages import Stages, read_files, write_json
from mmpo.pipeline.build import BuildOptions, sources_of
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.filters import evaluation_files, tokenizer_file
from mmpo.pipeline.storage import MANIFEST, digest, resolve_inputs
from mmpo.train.objective import parse_terms

SHOWN = ("accuracy", "ece_target", "ece_label")
COMPARED = ("accuracy", "cross_entropy", "nll")
"""The measures of models, and those of differences, in the tables that a run prints; the page and summary.json have all."""


@dataclass(frozen=True)
class Done:
    """What `run_stages` did. graded: what the dataset was built from, None where it was there; built: what the build returned."""

    summary: dict[str, Any]
    graded: Graded | None = None
    built: Mapping[str, Any] = field(default_factory=dict)


def run_stages(recipe: Recipe, stages: Stages, inputs: list[str], earlier: Graded | None = None) -> Done:
    """Do the stages of a checked recipe, once; inputs: of `inputs_of`; earlier: a round before, whose feedback is kept."""
    out = stages.out
    dataset = recipe.data or out / "pairs"
    built, source = None, None
    if recipe.build is not None:
        source = graded(recipe, stages, inputs, earlier)
        options = source.options
        if options.feedback_only and source.parts:
            dataset = Path(source.sources[0])
        else:
            key = {"options": dataclasses.asdict(options), "inputs": source.inputs}
            sources = list(map(str, source.sources))
            read = _read_beside(options)
            built = stages.do("build", key, lambda: run_build("build", sources, dataset, options), dataset, read)
        if options.feedback_only:
            say(f"feedback: {dataset}")
            return Done({"out": str(out), "dataset": str(dataset), "page": None, "runs": {}}, source)
    _validate(recipe, stages, dataset)
    made_of = manifest_text(dataset)
    recipe = _with_gamma(recipe, source)
    with _sharing_states(recipe):
        trained = {name: _train(recipe, stages, name, dataset, made_of) for name in recipe.runs}
        gamma = recipe.measures.gamma
        if gamma is None:
            # The same targets for every model, those of the first one trained by MMPO: else the measures say nothing.
            gamma = next((float(trained[name]["gamma"]) for name in trained if "mmpo" in parse_terms(recipe.runs[name].loss)), None)
        first = sorted(recipe.runs, key=lambda name: name != recipe.measures.against)  # what the others are compared with
        found = {name: _evaluate(recipe, stages, name, dataset, gamma, trained) for name in first}
    measured = {name: found[name] for name in recipe.runs}
    return Done(_compare(recipe, stages, dataset, built, trained, measured), source, built or {})


def inputs_of(recipe: Recipe) -> list[str]:
    """What the first stage reads, named and digested; fails before anything is written where an input is missing."""
    if recipe.build is None:
        if recipe.data is None or not (recipe.data / MANIFEST).is_file():
            raise UserError(f"data: {recipe.data} is not a dataset folder; `mmpo build` writes one")
        return []
    reading = recipe.generate or recipe.build
    several: list[tuple[Sequence[str], Any]] = [(one.inputs, own) for one, own in sources_of(recipe.build)] or [
        (recipe.inputs, reading)
    ]
    files = [
        file
        for inputs, own in several
        for file in resolve_inputs(inputs, own.format or "", encoding=own.encoding, separator=own.sep, sheet=own.sheet)
    ]
    return [f"{Path(str(file.path)).name} {digest(file.path)}" for file in files]


def _read_beside(options: BuildOptions) -> dict[str, str]:
    """What a build reads beside its inputs, with digests: evaluation prompts and tokenizers."""
    tokenizers = {one.tokenizer for one in (options, *(own for _, own in sources_of(options))) if one.tokenizer is not None}
    files = [file.path for file in evaluation_files(options.decontaminate)]
    return read_files(*files, *(tokenizer_file(str(one)) for one in tokenizers))


def _validate(recipe: Recipe, stages: Stages, dataset: Path) -> None:
    from mmpo.pipeline import validate

    say("[validate]")
    summary = validate(dataset, gamma=recipe.checks.gamma, strict=recipe.checks.strict)
    write_json(stages.out / "validation.json", summary)
    counts = {status: sum(check["status"] == status for check in summary["checks"]) for status in ("pass", "warn", "fail")}
    for check in summary["checks"]:
        if check["status"] != "pass":
            say(f"  {check['status']}: {check['name']}: {check['message']}")
    say(f"{counts['pass']} checks passed, {counts['warn']} warned, {counts['fail']} failed")
    if not summary["ok"]:
        raise UserError(f"{dataset} does not pass its checks; all of them stand in {recipe.out / 'validation.json'}")


def _with_gamma(recipe: Recipe, source: Graded | None) -> Recipe:
    """The recipe with people's γ in the runs that take it; where there is none that is of use, that is said, and they keep γ auto."""
    gamma = source.gamma if source is not None else None
    if not recipe.use_gamma:
        return recipe
    if gamma is None or not 0 < gamma < math.inf:
        say(
            f"calibrate.use_gamma: the γ of people's votes is {'unknown' if gamma is None else shown(gamma)}; runs train with γ auto"
        )
        return recipe
    runs = {name: dataclasses.replace(run, gamma=gamma) if name in recipe.use_gamma else run for name, run in recipe.runs.items()}
    return recipe.model_copy(update={"runs": runs})


def _sharing_states(recipe: Recipe) -> AbstractContextManager[None]:
    """Within, runs above the same frozen layers compute those once for all of them."""
    if all(options.top_layers is None for options in recipe.runs.values()):
        return nullcontext()
    from mmpo.train.model import sharing_states

    return sharing_states()


def _train(recipe: Recipe, stages: Stages, name: str, dataset: Path, made_of: str) -> dict[str, Any]:
    from mmpo.train import train_policy, train_reward

    folder = stages.out / "models" / name
    options = dataclasses.replace(recipe.runs[name], data=str(dataset), out=str(folder))
    work = train_policy if options.kind == "policy" else train_reward
    return stages.do(f"train-{name}", {"options": dataclasses.asdict(options), "dataset": made_of}, lambda: work(options), folder)


def _evaluate(
    recipe: Recipe, stages: Stages, name: str, dataset: Path, gamma: float | str | None, trained: dict[str, Any]
) -> dict[str, Any]:
    """A model's measures; its folder with the page of the evaluation stands beside the models."""
    from mmpo.train import evaluate

    kind, measures = recipe.runs[name].kind, recipe.measures
    folder = stages.out / "evaluation"
    other = measures.against if measures.against != name else None
    options: dict[str, Any] = {"split": measures.split, "gamma": gamma, "bootstrap": measures.bootstrap, "seed": measures.seed}

    def work() -> dict[str, Any]:
        against = None if other is None else folder / other
        summary = evaluate(kind, trained[name]["out"], dataset, **options, against=against, out=folder / name)
        write_json(folder / f"{name}.json", summary)
        return summary

    key = {"model": trained[name], **options, "against": other and trained[other], "dataset": manifest_text(dataset)}
    return stages.do(f"evaluate-{name}", key, work, folder / name)


def _compare(
    recipe: Recipe,
    stages: Stages,
    dataset: Path,
    built: dict[str, Any] | None,
    trained: dict[str, Any],
    measured: dict[str, Any],
) -> dict[str, Any]:
    from mmpo.pipeline.report import write_comparison

    write_page(dataset, stages.out / "dataset.html")
    summary: dict[str, Any] = {"out": str(stages.out), "dataset": str(dataset), "page": None, "runs": measured}
    if measured:
        runs = [
            {"name": name, "kind": options.kind, "loss": options.loss, **trained[name], **measured[name]}
            for name, options in recipe.runs.items()
        ]
        title = f"{recipe.title}: {stages.name}".strip(": ")
        summary["page"] = str(write_comparison(runs, stages.out / "comparison.html", title))
        print_measures(recipe, measured)
    write_json(stages.out / "summary.json", {"build": built, "trained": trained, **summary})
    say(f"table:   {stages.out / 'summary.json'}")
    say(f"page:    {summary['page'] or stages.out / 'dataset.html'}")
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
