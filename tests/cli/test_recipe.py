"""Recipes: every shipped one is valid, and what is wrong in one is refused before any work, naming the closest key."""

import dataclasses
import json
from pathlib import Path

import pytest

from mmpo.cli.flags import model_of
from mmpo.cli.main import run
from mmpo.cli.recipe.model import load_recipe, schema
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import flags_of, options_from
from mmpo.train.options import TrainOptions

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.build is not None
    assert recipe.runs


def published(name: str) -> dict[str, float]:
    options = load_recipe(ROOT / "recipes" / f"paper-{name}.yaml").runs["mmpo"]
    return {field: getattr(options, field) for field in ("gamma", "beta", "learning_rate", "pairs_per_step", "epochs")}


def test_paper_recipes_hold_the_published_settings() -> None:
    def policy(gamma: float, rate: float, epochs: int) -> dict[str, float]:
        return {"gamma": gamma, "beta": 0.01, "learning_rate": rate, "pairs_per_step": 64, "epochs": epochs}

    assert published("gemma-2b-policy") == policy(2.2, 1e-5, 3)
    assert published("gemma-7b-policy") == policy(0.3, 5e-7, 1)
    assert published("gemma-7b-policy-shp") == policy(1.1, 5e-7, 3)
    assert published("llama-3-8b-policy") == policy(2.2, 5e-7, 3)
    for name, rate, batch, epochs in (
        ("gemma-2b-reward", 1.41e-5, 64, 3),
        ("gemma-7b-reward", 3e-6, 32, 2),
        ("llama-3-8b-reward", 3e-6, 32, 2),
    ):
        options = load_recipe(ROOT / "recipes" / f"paper-{name}.yaml").runs["mmpo"]
        assert (options.learning_rate, options.pairs_per_step, options.epochs) == (rate, batch, epochs)
        assert (options.warmup_ratio, options.schedule, options.max_length) == (0, "linear", 1024)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("runs.reward-mmpo.lerning_rate=1", "learning_rate"),
        ("build.formt=jsonl", "format"),
        ("trainig.seed=1", "training"),
        ("runs.reward-mpo.seed=1", "reward-mmpo"),
        ("validate.gama=1", "gamma"),
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
        ("runs.reward-mmpo.reference=x", "reference"),
        ("runs.policy-mmpo.kind=null", "kind"),
        ("title.x=1", "title"),
        ("nonsense", "key=value"),
    ],
)
def test_wrong_recipes_are_refused_before_any_work(
    override: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["run", str(QUICKSTART), "--set", f"out={tmp_path / 'out'}", "--set", override]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert named in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "named"), [("", "mapping"), ("- a\n", "mapping"), ("a: [\n", "not YAML"), ("title: x\n", "out: missing")]
)
def test_files_that_are_no_recipe(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=named):
        load_recipe(path)
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_overrides_reach_the_options() -> None:
    recipe = load_recipe(QUICKSTART, ["training.max_steps=3", "runs.reward-mmpo.gamma=inf", "build.split=.8,.1,.1"])
    assert all(options.max_steps == 3 for name, options in recipe.runs.items() if name != "policy-mmpo")
    assert recipe.runs["reward-mmpo"].gamma == float("inf")
    assert recipe.build is not None and recipe.build.split == (0.8, 0.1, 0.1)


def test_recipe_folder_that_holds_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    source = ROOT / "data" / "arena_grades.jsonl.gz"
    assert run(["run", str(QUICKSTART), "--set", f"out={tmp_path}", "--set", f"build.inputs=[{source}]"]) == 2
    assert "holds something" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_recipe_under_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several processes would build the same dataset into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["run", str(QUICKSTART), "--set", f"out={tmp_path / 'out'}"]) == 2
    assert "mmpo.cli train" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


JUDGED = """
out: {out}
build: {{inputs: ["{source}"], format: jsonl}}
judge: {{base_url: "http://127.0.0.1:9/v1", {judge}}}
"""


@pytest.mark.parametrize(
    ("judge", "named"),
    [
        ("model: m, mode: pairs", "pairwise"),
        ("model: m, modes: pairwise", "mode"),
        ("model: m, judges: [a]", "not both"),
        ("judges: [a, {model: a}]", "two judges"),
        ("judges: [{model: a, url: x}]", "base_url"),
        ("samples: 3", "name a judge"),
    ],
)
def test_recipes_say_what_is_wrong_with_their_judges(judge: str, named: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(JUDGED.format(out=tmp_path / "out", source=tmp_path / "candidates.jsonl", judge=judge))
    with pytest.raises(UserError, match=named):
        load_recipe(recipe)


def test_a_recipe_with_judges_but_without_candidates(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"out: {tmp_path / 'out'}\ndata: {tmp_path}\njudge: {{model: m}}\n")
    with pytest.raises(UserError, match="candidates come from `build`"):
        load_recipe(recipe)
