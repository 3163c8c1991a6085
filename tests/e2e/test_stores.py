"""From candidates to a model with every dataset folder in an object store: nothing but the model and the journal lies here."""

from pathlib import Path

import pytest
from command import graded
from folders import contents, pairs_folder, write_rows
from openai_server import serving

from mmpo.annotate import agree
from mmpo.annotate.judge import JudgeOptions, judge
from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, UserError, build, load_feedback
from mmpo.pipeline.storage import on_disk
from mmpo.train import TrainOptions, evaluate, train_reward

BASE = Path(__file__).resolve().parents[1] / "golden" / "v1" / "base"
STORE = "memory://bucket"


@pytest.mark.slow
def test_all_stages_read_and_write_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPO_CACHE", str(tmp_path / "cache"))
    build(write_rows(tmp_path / "r.jsonl", graded(8)), f"{STORE}/asked", options=BuildOptions(format="jsonl", feedback_only=True))
    with serving({}) as server:
        options = JudgeOptions(model="judge-a", base_url=server.base_url)
        judged = [
            judge(place, out, options=options) for place, out in ((f"{STORE}/asked", f"{STORE}/judged"), (f"{STORE}/asked", "here"))
        ]
    assert [one["out"] for one in judged] == [f"{STORE}/judged", "here"] and judged[0]["journal"].startswith(
        str(tmp_path / "cache")
    )
    assert load_feedback(f"{STORE}/judged").equals(load_feedback("here"))
    assert agree(f"{STORE}/judged")["units"] == agree("here")["units"]
    summary = build(f"{STORE}/judged", f"{STORE}/pairs", options=BuildOptions(format="feedback", evidence="comparisons"))
    trained = train_reward(
        TrainOptions(
            kind="reward", data=f"{STORE}/pairs", model=str(BASE), out="model", max_steps=1, eval_split=None, learning_rate=1e-3
        )
    )
    assert trained["steps"] == 1 and summary["out"] == f"{STORE}/pairs"
    local = evaluate("reward", "model", on_disk(f"{STORE}/pairs"), split="train")
    assert evaluate("reward", "model", f"{STORE}/pairs", split="train")["accuracy"] == local["accuracy"]
    for words in (
        ["report", f"{STORE}/pairs", "--out", "p.html"],
        ["gamma", f"{STORE}/pairs"],
        ["agree", f"{STORE}/judged"],
    ):
        assert run(words) == 0, capsys.readouterr().err
    assert not (tmp_path / "memory:").exists()
    kept = {name.partition("/")[0] for name in contents(tmp_path)}
    assert kept == {"cache", "here", "here.judge.sqlite", "here.judge.sqlite.lock", "model", "p.html", "r.jsonl"}


def test_what_is_written_here_only_is_refused_at_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPO_CACHE", str(tmp_path / "cache"))
    pairs_folder(tmp_path / "pairs", graded(8))
    with pytest.raises(UserError, match="--out memory://bucket/model: it is written to a path on this machine"):
        train_reward(TrainOptions(kind="reward", data="pairs", model=str(BASE), out=f"{STORE}/model"))
    for words in (
        ["report", "pairs", "--out", f"{STORE}/p.html"],
        ["export", "pairs", "--to", "jsonl", "--out", f"{STORE}/x"],
    ):
        assert run(words) == 2 and f"{STORE}/" in capsys.readouterr().err
    assert not (tmp_path / "memory:").exists()
