"""Recipes: every shipped one is valid, its first lines name commands that ask for the same, and what is wrong in one is refused."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from command import refused
from folders import write_rows

from mmpo.annotate.judge import JudgeOptions
from mmpo.cli.flags import model_of
from mmpo.cli.main import make_app, run
from mmpo.cli.recipe.feedback import grades
from mmpo.cli.recipe.model import load_recipe, schema
from mmpo.cli.recipe.stages import Stages
from mmpo.pipeline import load_pairs
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import flags_of, options_from
from mmpo.train.options import TrainOptions

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
LARGE = sorted(path for name in ("gemma-7b", "llama-3-8b") for path in (ROOT / "recipes").glob(f"paper-{name}-*.yaml"))
REWARD = sorted((ROOT / "recipes").glob("paper-*-reward.yaml"))
LAUNCH = ["accelerate", "launch", "--config_file", "recipes/accelerate/fsdp.yaml", "--num_processes", "8", "-m", "mmpo.cli"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.build is not None
    assert recipe.runs


LARGE_REWARD = {"warmup_ratio": 0, "schedule": "linear", "max_length": 1024}


@pytest.mark.parametrize(
    ("name", "gamma", "rate", "batch", "epochs", "more"),
    [
        ("gemma-2b-policy", 2.2, 1e-5, 64, 3, {"beta": 0.01}),
        ("gemma-7b-policy", 0.3, 5e-7, 64, 1, {"beta": 0.01}),
        ("gemma-7b-policy-shp", 1.1, 5e-7, 64, 3, {"beta": 0.01}),
        ("llama-3-8b-policy", 2.2, 5e-7, 64, 3, {"beta": 0.01}),
        ("gemma-2b-reward", None, 1.41e-5, 64, 3, LARGE_REWARD),
        ("gemma-7b-reward", None, 3e-6, 32, 2, LARGE_REWARD),
        ("llama-3-8b-reward", None, 3e-6, 32, 2, LARGE_REWARD),
    ],
)
def test_paper_recipes_hold_the_published_settings(
    name: str, gamma: float | None, rate: float, batch: int, epochs: int, more: dict[str, Any]
) -> None:
    options = load_recipe(ROOT / "recipes" / f"paper-{name}.yaml").runs["mmpo"]
    expected = {"learning_rate": rate, "pairs_per_step": batch, "epochs": epochs, **more} | ({"gamma": gamma} if gamma else {})
    assert {field: getattr(options, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("runs.mmpo.lerning_rate=1", "learning_rate"),
        ("build.formt=jsonl", "format"),
        ("trainig.seed=1", "training"),
        ("runs.mpo.seed=1", "mmpo"),
        ("validate.gama=1", "gamma"),
        ("evaluate.against=mmop", "did you mean 'mmpo'"),
        ("training.max_steps=many", "training.max_steps"),
        ("build.strategy=[all]", "build.strategy"),
        ("training.gamma=-1", "gamma"),
        ("training.gamma=.nan", "gamma"),
        ("training.loss=mpo", "mmpo"),
        ("build.strategy=al", "all"),
        ("build.inputs=[]", "build.inputs"),
        ("build.split=[0.5,0.5]", "split"),
        ("data=somewhere", "exactly one of"),
        ("build.feedback_only=true", "feedback_only"),
        ("runs.mmpo.reference=x", "reference"),
        ("runs.mmpo.kind=null", "kind"),
        ("title.x=1", "title"),
        ("build.columns={0: x}", "the key 0 is no text"),
        ("build.split=" + "[" * 2000, "build.split"),
        ("build.split=2026-02-30", "build.split"),
        ("nonsense", "key=value"),
    ],
)
def test_wrong_recipes_are_refused_before_any_work(
    override: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", str(QUICKSTART), "--set", f"out={tmp_path / 'out'}", "--set", override]
    assert refused(words, tmp_path, capsys, named).count("\n") == 1


LOOP = ROOT / "recipes" / "loop.yaml"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rounds=0"], "rounds: 0 is not 1 or more"),
        (["rounds=-1"], "rounds"),
        (["rounds=two"], "rounds"),
        (["generate=null"], "build.inputs: missing"),
        (["generate=null", "build={inputs: [x], format: jsonl}"], "`generate` is missing, which samples from it"),
        (["build.feedback_only=true", "runs={}"], "build makes no pairs"),
        (["judge=null", "calibrate=null"], "nobody grades what a round writes: give `judge` or `score`"),
        (["runs={}"], "there is no policy to go round with"),
        (["runs.mmpo.kind=reward"], "every run must be of kind policy"),
        (["training.model=tiny"], "the first round has to sample from a model"),
        (["runs={a: {model: one}, b: {model: two}}"], "here are one, two"),
        (["build.split=[1,0,0]"], "no prompt is held out for test"),
        (["keep=some"], "keep"),
        (["keep=last", "calibrate.people=[people]"], "put {round} into the path"),
        (["evaluate.measure=nowhere:score"], "module 'nowhere' can't be imported"),
        (["evaluate.measure=json:score"], "module 'json' has no 'score'"),
        (["build.inputs=[file.jsonl]"], "the candidates come from `generate`"),
        (["build.format=jsonl"], "after `generate` it is feedback, not jsonl"),
        (["build=null"], "give exactly one of `build`"),
        (["build=null", "data=pairs"], "`build` is missing"),
        (["generate.promts=[x]"], "prompts"),
        (["generate.prompts=null"], "generate.prompts"),
        (["generate.models=[{model: a}, {model: a}]"], "two models are called 'a'"),
        (["generate.models=[{model: a, url: b}]"], "base_url"),
        (["generate.local=[{model: a, bach: 2}]"], "batch"),
        (["calibrate.out=x"], "calibrate.out: unknown key"),
        (["calibrate.method=al"], "isotonic"),
        (["score={}"], "name the model that grades"),
        (["score={models: [a, a]}"], "two models are called 'a'"),
        (["score={models: [a]}", "calibrate=null"], "units of their own"),
        (["rounds=null"], "name models (at endpoints) or local"),
        (["rounds=null", "generate.models=[a]"], "{round} stands for a round"),
        (
            ["rounds=null", "generate.models=[a]", "generate.engine=ray"],
            "generate.engine: ray is for models that the run itself holds",
        ),
        (["rounds=null", "generate.models=[a]", "calibrate=null", "keep=all"], "keep: is about rounds"),
        (["rounds=null", "generate.models=[a]", "calibrate=null", "evaluate.measure=a:b"], "evaluate.measure: is about rounds"),
    ],
)
def test_rounds_and_stages_that_do_not_fit_are_refused_before_any_work(overrides: list[str], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)) as refusal:
        load_recipe(LOOP, overrides)
    assert "\n" not in str(refusal.value)


def test_the_plan_of_a_recipe_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(LOOP), "--check"]) == 0
    assert "generate → judge → calibrate → build → train mmpo → evaluate, 3 rounds" in capsys.readouterr().err


JUDGED = 'out: x\nbuild: {{inputs: ["candidates.jsonl"], format: jsonl}}\njudge: {{base_url: "http://127.0.0.1:9/v1", {}}}\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "mapping"),
        ("- a\n", "mapping"),
        ("a: [\n", "not YAML"),
        ("{" * 2000, "nested too deeply"),
        ("out: x\nbuild: &a {columns: *a}\n", "an alias stands in what it names"),
        ("title: 2026-02-30\n", "not YAML"),
        ("on: x\n", "the key True is no text"),
        ("out: x\nbuild: {columns: {0: x}}\n", "the key 0 is no text"),
        ('"a[b": x\n', "a\\[b: unknown key"),
        ("out: x\ndata: y\nint: 1\n", "int: unknown key"),
        ("title: x\n", "out: missing"),
        ("out: x\ndata: .\njudge: {model: m}\n", "candidates come from `build`"),
        (JUDGED.format("model: m, mode: pairs"), "pairwise"),
        (JUDGED.format("model: m, modes: pairwise"), "mode"),
        (JUDGED.format("model: m, judges: [a]"), "not both"),
        (JUDGED.format("judges: [a, {model: a}]"), "two judges"),
        (JUDGED.format("judges: [{model: a, url: x}]"), "base_url"),
        (JUDGED.format("samples: 3"), "name a judge"),
    ],
)
def test_files_that_are_no_recipe(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=named):
        load_recipe(path)
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_overrides_reach_the_options() -> None:
    recipe = load_recipe(QUICKSTART, ["training.max_steps=3", "runs.mmpo.gamma=inf", "build.split=.8,.1,.1"])
    assert all(options.max_steps == 3 for options in recipe.runs.values())
    assert recipe.runs["mmpo"].gamma == float("inf")
    assert recipe.build is not None and recipe.build.split == (0.8, 0.1, 0.1)


def test_recipe_folder_that_holds_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    source = ROOT / "data" / "arena_grades.jsonl.gz"
    words = ["run", str(QUICKSTART), "--set", f"out={tmp_path}", "--set", f"build.inputs=[{source}]"]
    assert "holds something" in refused(words, tmp_path, capsys)


def test_a_recipe_under_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several processes would build the same dataset into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "mmpo.cli train" in refused(["run", str(QUICKSTART), "--set", f"out={tmp_path / 'out'}"], tmp_path, capsys)


def test_schema_is_json_schema_with_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
    build = schema()["$defs"]["Build"]["properties"]
    assert set(build) == {field.name for field in dataclasses.fields(BuildOptions)} | {"inputs"}
    assert all(entry.get("description") for entry in build.values())


@pytest.mark.parametrize("options", [BuildOptions, TrainOptions])
def test_flags_and_recipe_keys_are_the_fields(options: type) -> None:
    names = [field.name for field in dataclasses.fields(options)]
    assert list(model_of(options).model_fields) == names
    flags = [flag for name in names for flag in flags_of(options, name)]
    assert len(set(flags)) == len(flags)


def test_text_and_yaml_values_mean_the_same() -> None:
    text = options_from(BuildOptions, {"format": "csv", "columns": "prompt=q,score=s", "scale": "1:10", "kinds": "ai,human"})
    values = options_from(
        BuildOptions, {"format": "csv", "columns": {"prompt": "q", "score": "s"}, "scale": [1, 10], "kinds": ["ai", "human"]}
    )
    assert text == values


# The commands in the first lines


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
    assert given["inputs"] == recipe.inputs
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


def test_a_build_is_done_again_where_evaluation_prompts_have_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, recipe = [f"what is asked as number {i} {i}" for i in range(4)], tmp_path / "recipe.yaml"
    rows = [{"prompt": one, "completion": text, "score": len(text)} for one in asked for text in ("a", "bc")]
    source, known = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "known.txt"
    build = {"inputs": [str(source)], "format": "jsonl", "decontaminate": [str(known)]}
    recipe.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), "build": build}))
    for held, kept in ((1, False), (1, True), (2, False), (2, True)):
        known.write_text("\n".join(asked[:held]))
        assert run(["run", str(recipe)]) == 0
        assert ("[build] unchanged since it was made" in capsys.readouterr().err) == kept
        assert load_pairs(tmp_path / "out" / "pairs").num_rows == 4 - held


def test_a_stage_knows_the_files_that_its_key_names(tmp_path: Path) -> None:
    """The record of a version before, which says nothing of them, stays valid: what judges were paid for is not asked again."""
    stages, made, done = Stages(tmp_path / "out", {}), tmp_path / "made", []

    def times(**read: str) -> int:
        made.mkdir(exist_ok=True)
        return stages.do("x", {"k": 1}, lambda: done.append(0) or {"times": len(done)}, made, read)["times"]

    assert [times(a="1"), times(a="1"), times(a="2"), times()] == [1, 1, 2, 3]
    record = tmp_path / "out" / "stages" / "x.json"
    record.write_text(json.dumps({key: value for key, value in json.loads(record.read_text()).items() if key != "read"}))
    assert times(a="5") == 3


def test_rubrics_and_templates_in_files_are_what_a_judging_stage_reads(tmp_path: Path) -> None:
    read: dict[str, str] = {}
    names = [str(tmp_path / name) for name in ("a.yaml", "b.yaml", "c.j2")]
    for name in names:
        Path(name).write_text(f"name: x\ncriterion: {name}\n")
    (tmp_path / "manifest.json").write_text("{}")
    options = JudgeOptions(model="m", rubrics=(names[0], "overall"))
    judges = ["model=one", {"rubrics": f"overall,{names[1]}", "template": names[2]}]
    recipe: Any = SimpleNamespace(score=None, judge=options, build=None, judges=judges)
    stages: Any = SimpleNamespace(out=tmp_path, do=lambda *given: read.update(given[-1]) or {})
    grades(recipe, stages, tmp_path, {})
    assert sorted(read) == names and len(set(read.values())) == 3
