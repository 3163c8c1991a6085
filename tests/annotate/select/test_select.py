"""`mmpo select` from FEEDBACK to a list, and back: what is listed and counted, what is left out, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import graded, mmpo, refused
from folders import feedback_folder, made_up_prompts, write_rows

from mmpo.annotate import select
from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, UserError, build, load_feedback
from mmpo.train import completion_features

Rows = list[dict[str, Any]]


def scores(rater: str, value: Callable[[int, int], float], prompts: int = 12, completions: int = 3) -> Rows:
    """A rating of every completion."""
    return [
        {"prompt": f"Question {i}?", "completion": f"Answer {j} to {i}" + " and more" * j, "score": value(i, j), "rater": rater}
        for i in range(prompts)
        for j in range(completions)
    ]


def models() -> list[tuple[Rows, str]]:
    """Two reward models that agree, up to scale, on all prompts but the last two."""
    return [
        (scores("rm-a", lambda i, j: float(j)), "reward_model"),
        (scores("rm-b", lambda i, j: 10.0 * (j if i < 10 else -j)), "reward_model"),
    ]


def human(pairs: int) -> tuple[Rows, str]:
    """A person's ratings of the first and second completion of the first prompts."""
    return scores("ann", lambda i, j: float(j), pairs, 2), "human"


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_list_that_somebody_fills_in_becomes_feedback(suffix: str, tmp_path: Path) -> None:
    """What was listed comes back with the ids that it had: prompts of one message and of several, texts with commas, quotes, line ends,
    tools that were called."""
    call = {"type": "function", "function": {"name": "rain", "arguments": {"day": "now"}}}
    calls: list[Any] = [[{"role": "assistant", "content": "", "tool_calls": [call]}], "Dry."]
    prompts: Rows = [
        {"prompt": 'A "quoted", line\r\nand another', "completions": ["x,y\n", '"', "é\u2028"]},
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
            "completions": ["=1+1", "No."],
        },
        {"prompt": "Rain?", "completions": calls, "tools": [{"type": "function", "function": {"name": "rain"}}]},
    ]
    data, out = feedback_folder(tmp_path / "f", prompts), tmp_path / f"list.{suffix}"
    summary = select(data, out, by="random")
    assert (len(summary["pairs"]), summary["candidates"], summary["reasons"]) == (5, 5, {"drawn": 5})
    if suffix == "csv":
        import pandas as pd

        rows = pd.read_csv(out, keep_default_na=False).to_dict("records")
    else:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    filled = write_rows(tmp_path / f"filled.{suffix}", [{**row, "gap": 2} for row in rows])
    options = BuildOptions(format=suffix, scale=(-3, 3), kind="human", feedback_only=True)
    said = "\n".join(build(filled, tmp_path / "back", options=options)["warnings"])
    assert "_id" not in said
    other = write_rows(tmp_path / f"other.{suffix}", [{**row, "gap": 2, "first": "Else."} for row in rows])
    assert "in 5 rows prompt_id, first_id and second_id are not" in str(
        build(other, tmp_path / "other", options=options)["warnings"]
    )
    before, after = (
        {row["prompt_id"]: {one["id"] for one in row["completions"]} for row in load_feedback(folder).to_pylist()}
        for folder in (data, tmp_path / "back")
    )
    assert after == before


def test_pairs_that_people_graded_are_left_out_and_counted(joined: Callable[..., Path], tmp_path: Path) -> None:
    data = joined(*models(), human(5))
    done = mmpo("select", data, "--by", "model-disagreement", "--out", tmp_path / "next.jsonl", "--limit", "4", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["left_out"] == {"graded_already": 5} and summary["candidates"] == 12 * 3 - 5 and summary["pairs"] == 4
    assert summary["reasons"] == {"model-disagreement": 4} and summary["seconds"] > 0 and summary["out"].endswith("next.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["prompt"][0]["content"] for row in rows} == {"Question 10?", "Question 11?"}
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(row["vote_entropy"] == pytest.approx(1) and row["graders"] == 2 for row in rows)
    assert "left out: graded_already 5" in done.stderr
    of_rater = select(data, by="random", to=("ann",), limit=None)
    assert (of_rater["candidates"], len(of_rater["pairs"])) == (31, 31)


def test_who_is_compared(joined: Callable[..., Path]) -> None:
    """Two reward models, without a judge beside them; a judge beside one reward model; nobody's calibrated self; who is named."""
    judge = scores("judge", lambda i, j: -float(j)), "ai"
    itself = scores("judge@human", lambda i, j: -float(j)), "ai"
    everybody = joined(*models(), judge, itself)
    for raters, count, last in ((None, 2, 0), (("rm-a", "judge"), 2, 2), (("rm-a", "rm-b", "judge"), 3, None)):
        pairs = select(everybody, by="model-disagreement", raters=raters, limit=None)["pairs"]
        assert {row["graders"] for row in pairs} == {count}
        if last is not None:  # the reward models differ on two prompts of three pairs each, rm-a and the judge everywhere
            assert sum(row["score"] > 1e-9 for row in pairs) == (36 if last else 6)


def test_a_judge_is_compared_with_a_lone_reward_model(joined: Callable[..., Path]) -> None:
    data = joined(
        models()[0], (scores("judge", lambda i, j: -float(j)), "ai"), (scores("judge@human", lambda i, j: -float(j)), "ai")
    )
    assert {row["graders"] for row in select(data, by="model-disagreement")["pairs"]} == {2}


@pytest.mark.parametrize("way", ["information", "prediction", "gap"])
def test_a_head_is_fitted_to_the_grades_that_are_there(way: str, joined: Callable[..., Path]) -> None:
    data = joined(*models(), human(6))
    said = select(data, by=way, limit=8, per_prompt=1, featurize=completion_features)
    assert said["fitted"] | {"people": 6, "others": 36, "features": "bag", "looked_at": 30} == said["fitted"]
    assert len({row["prompt_id"] for row in said["pairs"]}) == 8 and said["reasons"] == {way: 8}
    same = select(load_feedback(data), by=way, limit=8, per_prompt=1, featurize=completion_features)
    assert same["pairs"] == said["pairs"]
    nothing = select(feedback_folder(data.parent / "fresh", 12), by=way, limit=3, featurize=completion_features)
    assert nothing["fitted"]["people"] == nothing["fitted"]["others"] == 0 and nothing["reasons"] == {way: 3}


def test_with_another_seed_other_pairs_are_drawn(tmp_path: Path) -> None:
    data = feedback_folder(tmp_path / "f", 40)
    ids = [[row["first_id"] for row in select(data, by="random", limit=10, seed=seed)["pairs"]] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_no_place_in_the_list_gives_the_better_one_away(tmp_path: Path) -> None:
    """Four standard deviations of a fair coin, thrown a hundred times."""
    data = feedback_folder(tmp_path / "f", graded(100, 2), scale=(1, 10), kind="ai")
    rows = select(data, by="small-margin", limit=None)["pairs"]
    better = [(3 * int(row["prompt"][0]["content"][9:-1]) + 2 * int(row["first"].split()[1])) % 9 for row in rows]
    other = [(3 * int(row["prompt"][0]["content"][9:-1]) + 2 * int(row["second"].split()[1])) % 9 for row in rows]
    assert len(rows) == 100 and 0.3 < np.mean(np.array(better) > np.array(other)) < 0.7


REFUSED: dict[str, tuple[Callable[[], list[tuple[Rows, str]]], list[str], tuple[str, ...]]] = {
    "no grades at all": (lambda: [(made_up_prompts(4), "ai")], ["--by", "small-margin"], ("needs margins",)),
    "no standard errors": (lambda: models()[:1], ["--by", "uncertain"], ("--by uncertain needs margins with", "or use --by random")),
    "nobody to compare": (lambda: [(made_up_prompts(4), "ai")], ["--by", "model-disagreement"], ("there is none", "mmpo score")),
    "one reward model": (lambda: models()[:1], ["--by", "model-disagreement"], ("the only one is rm-a",)),
    "ties alone": (
        lambda: [models()[0], (scores("flat", lambda i, j: 1.0), "reward_model")], ["--by", "model-disagreement"],
        ("all margins of flat are ties",),
    ),
    "all graded": (lambda: [human(4)], ["--by", "random"], ("nothing is left to ask", "all 4 pairs")),
    "one completion each": (lambda: [(made_up_prompts(4, 1), "ai")], ["--by", "random"], ("no pair to choose from in 4 prompts",)),
    "no file of features": (
        lambda: [(made_up_prompts(4), "ai")], ["--by", "gap", "--features", "nowhere/at-all.parquet"], ("no such file",),
    ),
    "features misspelled": (lambda: [(made_up_prompts(4), "ai")], ["--by", "gap", "--features", "bags"], ("bags", "bag")),
    "an unknown rater": (models, ["--by", "model-disagreement", "--rater", "rm-c"], ("--rater", "rm-c", "rm-a, rm-b")),
    "unknown people": (models, ["--to", "bob"], ("--to", "bob", "human")),
    "an unknown way": (models, ["--by", "informaton"], ("informaton", "information")),
    "a list of another kind": (models, ["--by", "random", "--out", "list.xlsx"], (".jsonl or .csv",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_chosen_from_is_refused(
    case: str, joined: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups, words, told = REFUSED[case]
    data = joined(*groups())
    out = [] if "--out" in words else ["--out", str(tmp_path / "list.jsonl")]
    message = refused(["select", str(data), *words, *out], tmp_path, capsys)
    assert message.count("error:") == 1 and all(word in message for word in told), message
    assert "PAIRS" not in message and "--select" not in message


def test_completions_that_look_alike_to_the_features_are_refused(tmp_path: Path) -> None:
    data = feedback_folder(tmp_path / "f", 6)
    with pytest.raises(UserError, match="no feature varies"):
        select(data, by="information", featurize=lambda name, texts: np.ones((len(texts.texts), 2)))
    with pytest.raises(UserError, match="featurize"):
        select(data, by="information")


def test_a_model_without_hidden_states_of_texts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    data = feedback_folder(tmp_path / "f", 4)
    words = ["select", str(data), "--by", "information", "--features", str(tmp_path / "empty"), "--out", str(tmp_path / "x.csv")]
    assert run(words) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err
