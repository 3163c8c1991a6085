"""A recipe: the YAML file that names the stages of a run. Everything in it is checked before any work starts."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from mmpo.annotate.judge import JudgeOptions, judges_of
from mmpo.cli.flags import model_of
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.options import EMPTY, Gamma, explain, options_from, unwritable
from mmpo.train.options import TrainOptions

SET_BY_THE_RUN = ("data", "out")
"""Training options that a recipe can't give: they follow from its own folder."""


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


class Recipe(BaseModel):
    """A checked recipe. `runs`: name → options; `build` is None where `data` names a finished dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    title: str
    out: Path
    inputs: list[str]
    data: Path | None
    build: BuildOptions | None
    judge: JudgeOptions | None
    judges: list[Any]
    checks: Checks
    measures: Measures
    runs: dict[str, TrainOptions]
    resolved: dict[str, Any]


@cache
def recipe_model() -> type[BaseModel]:
    """The pydantic model of a recipe file; `mmpo run --schema` prints its JSON Schema."""
    # The sections are models made at run time, which no type checker follows: hence Any.
    inputs: Any = (list[str], Field(..., min_length=1, description="files, folders, globs or Hub dataset names"))
    build: Any = create_model("Build", __base__=model_of(BuildOptions), inputs=inputs)
    several: Any = (
        list[str | dict[str, Any]],
        Field(default_factory=list, description="several judges: model, base_url, rater, ..."),
    )
    judge: Any = create_model("Judge", __base__=model_of(JudgeOptions), judges=several)
    training: Any = model_of(TrainOptions, without=SET_BY_THE_RUN, optional=True)
    fields: dict[str, Any] = {
        "title": (str, Field("mmpo run", description="heading of the page")),
        "out": (str, Field(..., min_length=1, description="folder of everything the run writes")),
        "build": (build | None, Field(None, description="how the dataset is built; or give `data`")),
        "judge": (judge | None, Field(None, description="LLM judges that grade the candidates which `build` reads")),
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
        build = options_from(BuildOptions, {key: section[key] for key in section if key != "inputs"}, where=f"{where}build: ")
        if build.feedback_only and given.get("runs"):
            raise UserError(f"{where}build.feedback_only makes no pairs, so there is nothing to train on: drop it or `runs`")
    judge, judges = _judge(where, given, build)
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
    return Recipe(
        title=parsed.title,
        out=Path(parsed.out),
        inputs=section["inputs"] if section else [],
        data=Path(parsed.data) if parsed.data else None,
        build=build,
        judge=judge,
        judges=judges,
        checks=parsed.validate_,
        measures=parsed.evaluate,
        runs=runs,
        resolved=json.loads(json.dumps(given, default=str)),
    )


def _judge(where: str, given: Mapping[str, Any], build: BuildOptions | None) -> tuple[JudgeOptions | None, list[Any]]:
    """The section `judge`, checked, and the judges that it names."""
    section = given.get("judge")
    if section is None:
        return None, []
    if build is None:
        raise UserError(f"{where}judge: the candidates come from `build`, which is missing; name the inputs there")
    options = options_from(JudgeOptions, {key: section[key] for key in section if key != "judges"}, where=f"{where}judge: ")
    judges = list(section.get("judges") or [])
    try:
        judges_of(options, judges)
    except UserError as error:
        raise UserError(f"{where}judge: {error}") from None
    return options, judges


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; recipes are YAML files, for example recipes/quickstart.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: not a recipe: it is nested too deeply") from None
    if (wrong := _no_text(values)) is not None:
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
    except yaml.YAMLError:
        value = text
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
