"""`mmpo judge` with wrong options, keys and inputs: exit status 2, one message, nothing asked and nothing written."""

from pathlib import Path

import pytest
from folders import feedback_folder, made_up_prompts, pairs_folder

from mmpo.cli.main import run
from mmpo.cli.recipe.model import load_recipe
from mmpo.pipeline.errors import UserError

URL = "http://127.0.0.1:9/v1"  # the port `discard`: nobody listens; none of these may get so far


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    return feedback_folder(tmp_path / "candidates", 3)


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *named: str) -> str:
    """What is said; nothing may come or go anywhere in the folder."""
    before = sorted(folder.rglob("*"))
    assert run(arguments) == 2
    assert sorted(folder.rglob("*")) == before
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    for name in named:
        assert name in captured.err, captured.err
    return captured.err


WRONG = {
    "mode": (["--mode", "pairs"], "pairwise"),
    "pairs": (["--pairs", "some"], "best-worst"),
    "pairs without k": (["--pairs", "random"], "random:4"),
    "orders": (["--orders", "three"], "both"),
    "rubric": (["--rubric", "helpfullness"], "helpfulness"),
    "rubric file": (["--rubric", "mine.yaml"], "mine.yaml"),
    "template": (["--template", "mine.j2"], "mine.j2"),
    "reply": (["--reply", "json"], "aspects-json"),
    "logprobs": (["--logprobs", "yes"], "need"),
    "samples": (["--samples", "0"], "1 or more"),
    "mass": (["--min-mass", "1.5"], "1 or less"),
    "temperature": (["--temperature", "3"], "2 or less"),
    "concurrency": (["--concurrency", "-1"], "1 or more"),
    "timeout": (["--timeout", "soon"], "--timeout"),
    "extra body": (["--extra-body", "{x"], "JSON"),
    "extra body of ours": (["--extra-body", '{"n": 3}'], "set by the run"),
    "budget without a price": (["--max-cost", "1"], "--prices"),
    "prices": (["--prices", "nowhere.yaml"], "nowhere.yaml"),
    "address": (["--base-url", "localhost:8000"], "http://127.0.0.1:8000/v1"),
    "address with a password": (["--base-url", "http://me:pw@127.0.0.1/v1"], "environment variable"),
    "two ways to name a judge": (["--judge", "m"], "not both"),
    "unknown flag": (["--api-key", "sk-1234567890"], "--api-key"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name: str, feedback: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, named = WRONG[name]
    command = ["judge", str(feedback), "--model", "m", "--base-url", URL, "--out", str(tmp_path / "out"), *flags]
    assert ":pw@" not in refused(command, tmp_path, capsys, named)


@pytest.mark.parametrize(
    ("judges", "named"),
    [
        (["m", "m"], "rater="),
        (["m,base=x"], "base_url"),
        (["m,base_url"], "key=value"),
        ([",rater=x"], "needs a model"),
        (["m,concurrency=many"], "number"),
    ],
)
def test_wrong_judges(judges: list[str], named: str, feedback: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [part for judge in judges for part in ("--judge", judge)]
    refused(["judge", str(feedback), "--base-url", URL, "--out", str(tmp_path / "out"), *flags], tmp_path, capsys, named)


def test_no_judge_and_no_key(
    feedback: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    refused(["judge", str(feedback), "--out", out], tmp_path, capsys, "--model")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    refused(["judge", str(feedback), "--model", "gpt-4o-mini", "--out", out], tmp_path, capsys, "OPENAI_API_KEY", "export")
    refused(["judge", str(feedback), "--model", "m", "--api-key-env", "MINE", "--out", out], tmp_path, capsys, "MINE")


def test_inputs_that_are_no_candidates(feedback: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, common = str(tmp_path / "out"), ["--model", "m", "--base-url", URL]
    refused(["judge", str(tmp_path / "nowhere"), *common, "--out", out], tmp_path, capsys, "nowhere")
    refused(["judge", str(tmp_path / "candidates.jsonl"), *common, "--out", out], tmp_path, capsys, "candidates.jsonl")
    refused(["judge", str(feedback), *common, "--out", str(feedback)], tmp_path, capsys, "is the input itself")
    pairs_folder(tmp_path / "pairs", made_up_prompts(40, scores=[1, 2]))
    refused(["judge", str(tmp_path / "pairs"), *common, "--out", out], tmp_path, capsys, "--feedback-only")
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("mine")
    refused(["judge", str(feedback), *common, "--out", str(thesis)], tmp_path, capsys, "thesis")


RECIPE = """
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
    recipe.write_text(RECIPE.format(out=tmp_path / "out", source=tmp_path / "candidates.jsonl", judge=judge))
    with pytest.raises(UserError, match=named):
        load_recipe(recipe)


def test_a_recipe_with_judges_but_without_candidates(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"out: {tmp_path / 'out'}\ndata: {tmp_path}\njudge: {{model: m}}\n")
    with pytest.raises(UserError, match="candidates come from `build`"):
        load_recipe(recipe)
