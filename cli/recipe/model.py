"""A recipe: the YAML file that names the stages of a run. Everything in it is checked before any work starts."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from mmpo.annotate.asking import keys_of_model
from mmpo.annotate.calibrate import CalibrateOptions
from mmpo.annotate.generate import GenerateOptions, sampled_models
from mmpo.annotate.judge import JudgeOptions, judges_of
from mmpo.cli.flags import model_of
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.options import EMPTY, Count, Gamma, explain, options_from, unwritable
from mmpo.pipeline.sources import outside_function
from mmpo.train.options import LocalOptions, TrainOptions
from mmpo.train.scoring import ScoreOptions, scorers_of

SET_BY_THE_RUN = ("data", "out")
"""Training options that a recipe can't give: they follow from its own folder."""
ROUND = "{round}"
"""What stands for the name of a round's folder in the paths of people's grades."""


class Checks(BaseModel):
    """The section `validate`."""

    model_config = ConfigDict(extra="forbid")
    gamma: Gamma | None = Field(default=None, description="check the saturation of the targets at this γ, or at auto, auto:.9")
    strict: bool = Field(default=False, description="warnings stop the run")


class Measures(BaseModel):
    """The section `evaluate`."""

    model_config = ConfigDict(extra="forbid")
    split: Literal["train", "validation", "test"] = Field(default="test", description="the split that is measured")
    gamma: Gamma | None = Field(
        default=None, description="γ of the targets for every model, or auto, auto:.9; null: that of the first mmpo run"
    )
    against: str | None = Field(default=None, description="the run that every other one is compared with, by differences")
    bootstrap: int = Field(default=1000, ge=0, description="samples of prompts behind each 95% interval; 0: none")
    seed: int = Field(default=0, ge=0, description="seed of these samples")
    measure: str | None = Field(
        default=None, description="with rounds: module:function of yours that gives (messages of the prompt, reply) a number"
    )


class Recipe(BaseModel):
    """A checked recipe. `runs`: name → options; `build` is None where `data` names a finished dataset. inputs: what `build` reads, or the
    prompts of `generate`; people: FEEDBACK folders; use_gamma: the runs that train with people's γ; a section that is missing is None."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    title: str
    out: Path
    inputs: list[str]
    data: Path | None
    build: BuildOptions | None
    generate: GenerateOptions | None
    models: list[Any]
    local: list[Any]
    score: ScoreOptions | None
    scorers: list[Any]
    judge: JudgeOptions | None
    judges: list[Any]
    calibrate: CalibrateOptions | None
    people: list[str]
    use_gamma: list[str]
    rounds: int | None
    keep: str
    checks: Checks
    measures: Measures
    runs: dict[str, TrainOptions]
    resolved: dict[str, Any]


@cache
def recipe_model() -> type[BaseModel]:
    """The pydantic model of a recipe file; `mmpo run --schema` prints its JSON Schema."""

    # The sections are models made at run time, which no type checker follows: hence Any.
    def several(what: str) -> Any:
        return (list[str | dict[str, Any]], Field(default_factory=list, description=what))

    named: Any = Field(
        None, min_length=1, description="files, folders, globs or Hub dataset names; after `generate` there are none"
    )
    format: Any = Field("feedback", description="input format; after `generate` it is feedback")
    build: Any = create_model("Build", __base__=model_of(BuildOptions), inputs=(list[str] | None, named), format=(str, format))
    judge: Any = create_model(
        "Judge", __base__=model_of(JudgeOptions), judges=several("several judges: model, base_url, rater, ...")
    )
    prompts: Any = (list[str], Field(..., min_length=1, description="files, folders, globs or Hub datasets of prompts"))
    generate: Any = create_model(
        "Generate", __base__=model_of(GenerateOptions), prompts=prompts,
        models=several("models at endpoints: model, base_url, called, temperature, ..."),
        local=several("models on this machine: model, called, batch, ...; with rounds beside the policy of the round before"),
    )  # fmt: skip
    score: Any = create_model("Score", __base__=model_of(ScoreOptions), models=several("models that grade: model, rater, ..."))
    people: Any = (
        list[str],
        Field(
            default_factory=list,
            description="FEEDBACK folders with people's grades, as `mmpo argilla pull` writes them; {round} stands for the round's folder",
        ),
    )
    what = "train the runs that name no γ with the one at which people's votes are most likely by the calibrated margins"
    use_gamma: Any = (bool, Field(False, description=what))
    calibrate: Any = create_model(
        "Calibrate", __base__=model_of(CalibrateOptions, without=("out",)), people=people, use_gamma=use_gamma
    )
    count: Any = Count
    training: Any = model_of(TrainOptions, without=SET_BY_THE_RUN, optional=True)
    fields: dict[str, Any] = {
        "title": (str, Field("mmpo run", description="heading of the page")),
        "out": (str, Field(..., min_length=1, description="folder of everything the run writes")),
        "build": (build | None, Field(None, description="how the dataset is built; or give `data`")),
        "generate": (generate | None, Field(None, description="models that answer prompts: the candidates")),
        "score": (score | None, Field(None, description="reward models or policies that grade the candidates")),
        "judge": (judge | None, Field(None, description="LLM judges that grade the candidates")),
        "calibrate": (calibrate | None, Field(None, description="graders' margins onto people's")),
        "rounds": (count | None, Field(None, description="go round so many times: each samples from the policy of the one before")),
        "keep": (
            Literal["all", "last"],
            Field("all", description="what a round is built from: all rounds so far, or the last alone"),
        ),
        "data": (str | None, Field(None, min_length=1, description="a dataset folder that `mmpo build` wrote")),
        "validate_": (Checks, Field(default_factory=Checks, alias="validate", description="checks of the dataset")),
        "evaluate": (Measures, Field(default_factory=Measures, description="how the trained models are measured")),
        "training": (training | None, Field(None, description="options that all runs share")),
        "runs": (dict[str, training], Field(default_factory=dict, description="run name → its own options")),
    }
    return create_model("Recipe", __config__=ConfigDict(extra="forbid", title="mmpo recipe"), **fields)


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors."""
    return recipe_model().model_json_schema(by_alias=True)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `key=value` overrides (dotted keys, YAML values) and check all of it.

    Raises UserError naming the file, the place, what was given and what is allowed.
    """
    values = _read(Path(path))
    for override in overrides:
        _override(values, override)
    where = f"{path}: "
    if (text := unwritable(values)) is not None:
        raise UserError(f"{where}{text!a} holds half a character (a lone surrogate), which no file can hold; write it anew")
    try:
        parsed: Any = recipe_model()(**values)
    except ValidationError as error:
        raise UserError(explain(error, recipe_model(), where=where)) from None
    given = parsed.model_dump(exclude_unset=True, by_alias=True)
    section = given.get("build")
    if (section is None) == (parsed.data is None):
        raise UserError(f"{where}give exactly one of `build` (makes a dataset) and `data` (names a finished one)")
    build = None
    if section is not None:
        build = options_from(
            BuildOptions,
            ({} if section.get("sources") else {"format": "feedback"}) | {key: section[key] for key in section if key != "inputs"},
            where=f"{where}build: ",
        )
        if build.feedback_only and given.get("runs"):
            raise UserError(f"{where}build.feedback_only makes no pairs, so there is nothing to train on: drop it or `runs`")
    found: dict[str, Any] = {}
    for name in STAGES:
        found |= _stage(where, name, given.get(name), build)
    inputs = _inputs(where, given, section)
    shared = given.get("training") or {}
    options_from(TrainOptions, {**shared, "kind": shared.get("kind") or "policy"}, where=f"{where}training: ")
    runs = {}
    for name, own in (given.get("runs") or {}).items():
        if not name or Path(name).name != name or name.startswith("."):
            raise UserError(f"{where}runs.{name}: the name of a run must be usable as a folder name")
        merged = {**shared, **own}
        if merged.get("kind") is None:
            raise UserError(f"{where}runs.{name}.kind: missing; policy or reward")
        runs[name] = options_from(TrainOptions, merged, where=f"{where}runs.{name}: ")
    if parsed.evaluate.against is not None and parsed.evaluate.against not in runs:
        raise UserError(f"{where}evaluate.against: {unknown_name('run', parsed.evaluate.against, runs)}")
    recipe = Recipe(
        title=parsed.title,
        out=Path(parsed.out),
        inputs=inputs,
        data=Path(parsed.data) if parsed.data else None,
        build=build,
        use_gamma=[
            name
            for name, own in (given.get("runs") or {}).items()
            if parsed.calibrate and parsed.calibrate.use_gamma and "gamma" not in {**shared, **own}
        ],
        rounds=parsed.rounds,
        keep=parsed.keep,
        **found,
        checks=parsed.validate_,
        measures=parsed.evaluate,
        runs=runs,
        resolved=json.loads(json.dumps(given, default=str)),
    )
    _check_order(where, recipe, "keep" in given)
    return recipe


STAGES: dict[str, tuple[type, dict[str, str]]] = {
    "generate": (GenerateOptions, {"models": "models", "local": "local"}),
    "score": (ScoreOptions, {"models": "scorers"}),
    "judge": (JudgeOptions, {"judges": "judges"}),
    "calibrate": (CalibrateOptions, {"people": "people"}),
}
"""The stages before the build: their options, and what else their sections hold, by the names that a Recipe has for it."""


def _stage(where: str, name: str, section: Mapping[str, Any] | None, build: BuildOptions | None) -> dict[str, Any]:
    """A section's options, checked, and the models or people that it names, by the names of a Recipe's fields."""
    kind, own = STAGES[name]
    if section is None:
        return {name: None, **{field: [] for field in own.values()}}
    if build is None:
        raise UserError(
            f"{where}{name}: the candidates come from `build` (inputs), or go to it from `generate`, and `build` is missing; write it"
        )
    options = options_from(
        kind, {key: section[key] for key in section if key not in (*own, "prompts", "use_gamma")}, where=f"{where}{name}: "
    )
    found = {field: list(section.get(key) or []) for key, field in own.items()}
    try:
        if name == "judge":
            judges_of(options, found["judges"])
        elif name == "score":
            scorers_of(found["scorers"])
        elif name == "generate":
            for one in found["local"]:
                options_from(LocalOptions, keys_of_model(LocalOptions, one, "local model", "local"))
            if found["models"]:
                sampled_models(options, found["models"])
    except UserError as error:
        raise UserError(f"{where}{name}: {error}") from None
    return {name: options, **found}


def _inputs(where: str, given: Mapping[str, Any], build: Mapping[str, Any] | None) -> list[str]:
    """What the first stage reads. Raises UserError."""
    generate = given.get("generate")
    if generate is None:
        if build is not None and build.get("sources"):
            others = [name for name in STAGES if given.get(name)]
            if build.get("inputs") or others:
                also = "build.inputs" if build.get("inputs") else others[0]
                how = "; build the sources into FEEDBACK first (feedback_only), and name that folder as inputs" if others else ""
                raise UserError(f"{where}build.sources: each source names its own inputs; leave out {also}{how}")
            return []
        if build is not None and build.get("inputs") is None:
            raise UserError(
                f"{where}build.inputs: missing; files, folders, globs or Hub dataset names (or let `generate` write candidates)"
            )
        if build is not None and "format" not in build:
            raise UserError(f"{where}build.format: missing; it is the format of `inputs`, and `mmpo formats` lists them")
        return build["inputs"] if build else []
    for key in ("inputs", "sources", "columns", "scale"):
        if build and build.get(key):
            raise UserError(f"{where}build.{key}: the candidates come from `generate`; leave it out, or `generate`")
    if build and build.get("format", "feedback") != "feedback":
        raise UserError(f"{where}build.format: after `generate` it is feedback, not {build['format']}; leave it out")
    return generate["prompts"]


def _check_order(where: str, recipe: Recipe, keeps: bool) -> None:
    """Raise UserError where a stage has nothing to work on, or rounds can't go round."""
    if recipe.rounds is None:
        if recipe.generate is not None and not (recipe.models or recipe.local):
            raise UserError(
                f"{where}generate: name models (at endpoints) or local (on this machine), or `rounds`, which sample from the policy"
            )
        if recipe.generate is not None and recipe.generate.engine != "local" and not recipe.local:
            raise UserError(
                f"{where}generate.engine: {recipe.generate.engine} is for models that the run itself holds; name one by `local`, or leave "
                "it out"
            )
        for given, name in ((keeps, "keep"), (recipe.measures.measure is not None, "evaluate.measure")):
            if given:
                raise UserError(f"{where}{name}: is about rounds; give `rounds` as well, or leave it out")
        if any(ROUND in one for one in recipe.people):
            raise UserError(f"{where}calibrate.people: {ROUND} stands for a round; give `rounds` as well, or name the folder")
    if recipe.score and recipe.judge and recipe.calibrate is None and recipe.build and not recipe.build.raters:
        raise UserError(
            f"{where}score and judge grade in units of their own: say whose margins are trained on by build.raters, or let `calibrate` "
            "bring them onto people's"
        )
    if recipe.rounds is not None:
        _check_rounds(where, recipe)


def _check_rounds(where: str, recipe: Recipe) -> None:
    if recipe.generate is None or recipe.build is None or recipe.build.feedback_only:
        what = (
            "build makes no pairs (feedback_only)"
            if recipe.generate and recipe.build
            else "`generate` is missing, which samples from it"
        )
        raise UserError(f"{where}rounds: every round trains a policy on what the one before wrote, and {what}")
    if not (recipe.judge or recipe.score):
        raise UserError(f"{where}rounds: nobody grades what a round writes: give `judge` or `score`")
    if not recipe.runs:
        raise UserError(f"{where}rounds: there is no policy to go round with; name one in `runs`, of kind policy")
    for name, options in recipe.runs.items():
        if options.kind != "policy":
            raise UserError(
                f"{where}runs.{name}: kind {options.kind}: rounds sample from what they train, so every run must be of kind policy"
            )
        if options.model == "tiny":
            raise UserError(
                f"{where}runs.{name}.model: tiny is made of the training texts, and the first round has to sample from a model"
            )
    models = sorted({options.model for options in recipe.runs.values()})
    if len(models) > 1:
        raise UserError(
            f"{where}runs: all policies share the first round, and so the model that it samples from; here are {', '.join(models)}"
        )
    share = dict(zip(("train", "validation", "test"), recipe.build.split, strict=True))[recipe.measures.split]
    if not share:
        raise UserError(f"{where}evaluate.split: no prompt is held out for {recipe.measures.split}; give it a share by build.split")
    if recipe.people and recipe.keep == "last" and not any(ROUND in one for one in recipe.people):
        raise UserError(
            f"{where}calibrate.people: with keep: last every round needs people's grades of its own candidates: put {ROUND} into the path "
            f"(people/{ROUND})"
        )
    if recipe.measures.measure is not None:
        outside_function("evaluate.measure", recipe.measures.measure)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        wrong = _no_text(values)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; recipes are YAML files, for example recipes/quickstart.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # of a date such as 2026-02-30 a ValueError
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: not a recipe: it is nested too deeply, or an alias stands in what it names") from None
    if wrong is not None:
        raise UserError(f"{path}: the key {wrong} is no text; YAML reads names such as on, yes and 1 so: put it in quotes")
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping with the keys {', '.join(_keys())}, not {type(values).__name__}")
    return values


def _no_text(values: Any) -> str | None:
    """The first key of a mapping, at any depth, that is no text, as Python writes it; None where all are."""
    if isinstance(values, dict):
        return next((repr(key) for key in values if not isinstance(key, str)), None) or _no_text(list(values.values()))
    return next((found for one in values if (found := _no_text(one)) is not None), None) if isinstance(values, list) else None


def _keys() -> list[str]:
    return [field.alias or name for name, field in recipe_model().model_fields.items()]


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {override}: write key=value, for example --set training.max_steps=20")
    if not text:
        raise UserError(f"--set {override}: the value {EMPTY}; null stands for none")
    try:
        value = yaml.safe_load(text)
        wrong = _no_text(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        value, wrong = text, None
    if wrong is not None:
        raise UserError(f"--set {override}: the key {wrong} is no text; put it in quotes")
    *parents, last = key.strip().split(".")
    place: Any = values
    for depth, parent in enumerate(parents):
        if parent not in place or place[parent] is None:
            if (depth == 0 and parent not in _keys()) or (depth == 1 and parents[0] == "runs"):
                known = _keys() if depth == 0 else list(place)
                raise UserError(f"--set {override}: {unknown_name('key', parent, known)}")
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise UserError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, it has no key {last!r}")
    place[last] = value
