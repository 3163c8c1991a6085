"""The loop: prompts to candidates to grades to a policy, and again; with a real server, real people's folders and small models."""

import json
import re
from pathlib import Path
from typing import Any

import demo_loop
import pytest
from folders import read_table, write_rows
from loop_cases import PROMPTS, Loop, grade, models_in
from openai_server import Server

from mmpo.annotate.client import Journal
from mmpo.cli.main import run
from mmpo.train import LocalModel


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


def weights(folder: Path) -> list[str]:
    """The digests of the models that wrote the candidates of a folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return [one["sent"]["weights"] for one in manifest["recipe"]["models"]]


@pytest.mark.slow
def test_each_round_samples_from_the_policy_of_the_one_before(models: Path, server: Server, tmp_path: Path, capsys: Any) -> None:
    sets = ("evaluate.measure=demo_loop:truth", "calibrate.use_gamma=true", "rounds=1")
    loop = Loop(models, server, tmp_path / "loop", *sets)
    assert loop.run() == [3, 0]
    loop.sets[-1] = "rounds=2"  # more of them later go on from what is there
    assert loop.run(["round-2"]) == [3, 0]
    with Journal(loop.out / "generate.sqlite") as journal:  # what was written to measure a policy is not written again by its round
        assert journal.spent()["round-2"]["requests"] == 3 * len(PROMPTS)
    said = capsys.readouterr().err
    asked = f"mmpo argilla push {loop.out}/round-2/judged --dataset loop-round-2"
    assert asked in said and f"--out {loop.people}/round-2" in said
    # Who wrote what, and by which weights; the names hold the round.
    first, second = loop.out / "round-1", loop.out / "round-2"
    assert weights(first / "candidates") == [LocalModel(str(models / "start")).digest]
    assert weights(second / "candidates") == [LocalModel(str(first / "models" / "mmpo")).digest]
    assert models_in(loop.feedback("round-1/judged")) == {"round-1"}
    assert models_in(loop.feedback("round-2/feedback")) == {"round-1", "round-2"}
    assert models_in(loop.feedback("round-2/sampled/replies")) == {"round-3"}
    # A prompt that is held out stays so: what a policy is measured on was never trained on.
    kept = {row["prompt_id"] for row in loop.feedback("held-out")}
    trained = {row for place in (first, second) for row in read_table(place / "pairs" / "train")["prompt_id"].to_pylist()}
    assert kept and trained and not kept & trained
    assert {row["prompt_id"] for row in loop.feedback("round-2/sampled/beside")} <= kept
    start, *policies = loop.rows()
    assert [row["round"] for row in policies] == [1, 2] and start["measure"] is not None
    for row, place in zip((start, *policies), ("", "round-1/", "round-2/"), strict=True):  # every request is accounted for
        found = row["replies"]
        assert found["kept"] + found["repeated"] + sum(found["left_out"].values()) == found["requests"] == 3 * len(kept)
        assert row["measure_prompts"] == len(kept) - found["without_reply"]
        if place:
            record = json.loads((loop.out / "stages" / place / "sampled" / "generate.json").read_text())
            [model] = record["summary"]["models"]
            assert [model[name] for name in ("requests", "candidates", "repeated", "reasons")] == [
                found[name] for name in ("requests", "kept", "repeated", "left_out")
            ]
            assert 0 < row["measure_gain_prompts"] <= row["measure_prompts"]
    ends = [row["measure_gain_95"] for row in policies]
    assert all(low <= row["measure_gain"] <= high for row, (low, high) in zip(policies, ends, strict=True))
    assert policies[0]["graders"]["judge"]["human_pairs"] < policies[1]["graders"]["judge"]["human_pairs"]  # keep: all
    for row in policies:  # calibrate.use_gamma
        record = json.loads((loop.out / f"round-{row['round']}" / "models" / "mmpo" / "mmpo.json").read_text())
        assert record["summary"]["gamma"] == row["graders"]["judge"]["gamma"] > 0
    page = (loop.out / "rounds.html").read_text()
    assert "data:image/png" in page and "<script" not in page and "measure gain" in page
    # Again: nothing is asked, written or trained.
    before = server.counts()["requests"], [path.stat().st_mtime_ns for path in sorted(loop.out.rglob("*.safetensors"))]
    assert loop.run() == [0]
    assert before == (server.counts()["requests"], [path.stat().st_mtime_ns for path in sorted(loop.out.rglob("*.safetensors"))])


@pytest.mark.slow
def test_the_last_round_alone_and_several_policies_side_by_side(models: Path, server: Server, tmp_path: Path) -> None:
    loop = Loop(
        models, server, tmp_path / "loop", "keep=last", "runs={mmpo: {loss: mmpo}, dpo: {loss: dpo}}", "training.max_steps=3"
    )
    assert loop.run(["round-1", "round-2/mmpo", "round-2/dpo"]) == [3, 3, 3, 0]
    assert models_in(loop.feedback("round-2/dpo/calibrated")) == {"round-2/dpo"}
    assert [(row["run"], row["round"]) for row in loop.rows()] == [("(start)", 0), ("mmpo", 1), ("dpo", 1), ("mmpo", 2), ("dpo", 2)]
    assert (loop.out / "round-1" / "models" / "dpo").is_dir() and (loop.out / "round-2" / "mmpo" / "models" / "mmpo").is_dir()
    assert weights(loop.out / "round-2" / "dpo" / "candidates") == [LocalModel(str(loop.out / "round-1" / "models" / "dpo")).digest]


@pytest.mark.slow
def test_a_reward_model_in_the_judges_place(models: Path, server: Server, tmp_path: Path, capsys: Any) -> None:
    sets = ("judge=null", "calibrate=null", f"score.models=[{models / 'reward'}]", "training.max_steps=3", "training.lora=4")
    loop = Loop(models, server, tmp_path / "loop")
    loop.sets = [one for one in loop.sets if not one.startswith(("judge.", "calibrate."))] + list(sets)
    # Prompts come with an answer already, which is nobody's of the loop.
    rows = [{"prompt": prompt, "completions": ["because of a name."], "models": ["somebody"]} for prompt in PROMPTS]
    loop.sets.append(f"generate.prompts=[{write_rows(tmp_path / 'answered.jsonl', rows)}]")
    before = server.counts()["requests"]
    assert run([*loop.words, "--set", "evaluate.measure=demo_loop:WORTH"]) == 2
    assert run([*loop.words, "--set", "evaluate.measure=demo_loop:quality"]) == 2
    assert (
        "evaluate.measure demo_loop:quality: AttributeError of the reply" in (said := capsys.readouterr().err)
        and "returns a number" in said
    )
    assert run(loop.words) == 0
    assert server.counts()["requests"] == before
    assert [list(row["gains"]) for row in loop.rows()] == [[], ["reward"], ["reward"]]
    assert models_in(loop.feedback("round-2/feedback")) == {"somebody", "round-1", "round-2"}
    assert models_in(loop.feedback("round-2/sampled/beside")) == {"round-1", "round-3"}


def test_stages_once_from_prompts_to_calibrated_pairs(models: Path, server: Server, tmp_path: Path, capsys: Any) -> None:
    loop = Loop(
        models, server, tmp_path / "once", "rounds=null", f"generate.local=[{{model: {models / 'start'}, called: me}}]", "runs={}"
    )
    loop.sets[loop.sets.index(f"calibrate.people=['{loop.people}/{{round}}']")] = f"calibrate.people=['{loop.people}']"
    # A few answers that never come stop nobody who allows for them.
    server.plan({"faults": [{"kind": "content_policy", "contains": demo_loop.ASKED[0].format(demo_loop.TOPICS[0])}]})
    assert run(loop.words) == 3
    assert "build.max_rejects, 0.01, is the largest share" in capsys.readouterr().err
    loop.sets.append("build.max_rejects=0.1")
    assert run(loop.words) == 3
    server.plan({"faults": []})
    said = capsys.readouterr().err
    assert "going on without 6 of " in said
    assert f"argilla push {loop.out}/judged --dataset once --limit" in said
    grade(loop.out / "judged", loop.people)
    assert run([*loop.words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["dataset"] == str(loop.out / "pairs") and summary["runs"] == {}
    manifest = json.loads((loop.out / "pairs" / "manifest.json").read_text())
    assert manifest["recipe"]["raters"] == ["judge@human"]
    loop.sets.append("calibrate.people=[]")
    assert run(loop.words) == 2
    assert f"argilla push {loop.out}/judged" in (said := capsys.readouterr().err) and "calibrate.people: [DIR]" in said


@pytest.mark.slow
@pytest.mark.whole
def test_the_demo_gains_on_the_true_score_and_its_control_does_not(tmp_path: Path, capfd: Any) -> None:
    assert demo_loop.main(["--out", str(tmp_path / "demo"), "--rounds", "2"]) == 0
    said = capfd.readouterr().out
    low, high = (float(one) for one in re.findall(r"judge ([+-][0-9.]+) to ([+-][0-9.]+)", said)[0])
    assert 0.5 < low < high
    page = (tmp_path / "demo" / "rounds.html").read_text()
    assert "judge: judge" in page and "judge: coin" in page
