"""Candidates by a model on this machine: journaled, beside endpoints, killed and gone on with."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import refused, started, stopped, wait_for
from folders import write_rows

from mmpo.annotate import GenerateOptions, generate
from mmpo.annotate.client import Journal
from mmpo.annotate.generate import estimate, prepared
from mmpo.cli.main import run
from mmpo.pipeline import load_feedback, validate
from mmpo.pipeline.errors import UserError
from mmpo.train import LocalModel

torch.set_num_threads(1)
KILLS = int(os.environ.get("MMPO_KILLS", "5"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel(str(folder), called="tiny", batch=8)


def texts(folder: Path) -> list[tuple[str, str]]:
    return [(row["prompt_id"], one["text"]) for row in load_feedback(folder).to_pylist() for one in row["completions"]]


def answered(journal: Path) -> int:
    """Replies that a journal holds."""
    if not journal.is_file():
        return 0
    with Journal(journal, read_only=True) as opened:
        return sum(count for (count,) in opened.rows("SELECT count(*) FROM answers"))


def test_it_writes_what_an_endpoint_would_and_nothing_twice(model: LocalModel, generating: Any) -> None:
    job = generating({}, 6)
    options = GenerateOptions(n=3, max_tokens=20, keep=("cut",), system="Be brief.")
    summary = generate(job.prompts, job.folder / "out", options=options, local=[model])
    [told] = summary["models"]
    assert summary["finished"] and summary["cost"] is None and summary["seconds"] > 0
    assert (told["name"], told["local"], told["requests"], told["cost"]) == ("tiny", True, 18, None)
    assert told["candidates"] + told["repeated"] + told["reasons"].get("empty", 0) == 18 and told["candidates"] > 12
    assert told["reply_tokens"] <= 18 * 20
    assert {"pass"} <= {check["status"] for check in validate(job.folder / "out")["checks"]} <= {"pass", "unknown"}
    before, asked = texts(job.folder / "out"), model.serve
    model.serve = lambda inbox, halted: None if inbox.get() is None else pytest.fail("it was asked again")  # type: ignore[method-assign]
    try:
        generate(job.prompts, job.folder / "out", options=options, local=[model])
    finally:
        model.serve = asked  # type: ignore[method-assign]
    assert texts(job.folder / "out") == before
    both = GenerateOptions(n=3, max_tokens=20, keep=("cut",), system="Be brief.", base_url=job.server.base_url)
    summary = generate(job.prompts, job.folder / "out", options=both, local=[model], models=["writer"])
    assert Counter(model for _, model, _ in job.texts())["writer"] == 18
    assert set(before) <= set(texts(job.folder / "out"))


def test_stops_and_seeds(model: LocalModel, generating: Any) -> None:
    job = generating({}, 3)

    def said(out: str, **options: Any) -> list[tuple[str, str]]:
        generate(
            job.prompts, job.folder / out, options=GenerateOptions(n=2, max_tokens=30, keep=("cut",), **options), local=[model]
        )
        return texts(job.folder / out)

    plain = said("plain")
    assert said("again") == plain and said("other", seed=1) != plain
    stop = next(text for _, text in plain if len(text) > 20)[10:12]
    cut = said("stopped", stop=(stop,))
    assert {text for _, text in cut} == {text.partition(stop)[0] for _, text in plain}
    assert any(stop in text for _, text in plain)


def test_prompts_that_do_not_fit_are_named(folder: Path, generating: Any) -> None:
    small = LocalModel(str(folder), called="small", batch=2)
    small.most = 40
    job = generating({}, [{"prompt": "Question 1?"}, {"prompt": "Question 2? " * 60}])
    summary = generate(job.prompts, job.folder / "out", options=GenerateOptions(n=1, max_tokens=20, keep=("cut",)), local=[small])
    assert not summary["finished"] and summary["counts"] == {"context_length_exceeded": 1} and summary["prompts"] == 2


def test_the_command_names_its_keys(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {i}?"} for i in range(3)])
    words = ["generate", str(prompts), "--n", "1", "--max-tokens", "9", "--keep", "cut", "--out", str(tmp_path / "out")]
    refused([*words, "--local", f"{folder},bacth=4"], tmp_path, capsys, "unknown key of a local model 'bacth'", "batch")
    refused([*words, "--local", str(tmp_path / "none")], tmp_path, capsys, "none")
    refused([*words, "--local", f"{folder},batch=0"], tmp_path, capsys, "batch")
    assert run([*words, "--local", f"{folder},called=tiny,batch=4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["name"] == "tiny"


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_written_twice(
    model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {i}?"} for i in range(12 * KILLS)])
    options, moments = GenerateOptions(n=4, max_tokens=60, keep=("cut",)), random.Random(3)
    journal = tmp_path / "out.generate.sqlite"
    killed = 0
    for _ in range(KILLS):
        before = answered(journal)
        process = multiprocessing.get_context("fork").Process(
            target=generate, args=(prompts, tmp_path / "out"), kwargs={"options": options, "local": [model]}
        )
        process.start()
        assert wait_for(lambda before=before: answered(journal) > before)
        time.sleep(moments.uniform(0, 0.1))
        killed += process.is_alive()
        process.kill()
        process.join()
        assert answered(journal) > before
    assert killed == KILLS
    summary = generate(prompts, tmp_path / "out", options=options, local=[model])
    assert summary["finished"] and summary["models"][0]["requests"] == 48 * KILLS == answered(journal)
    with Journal(journal, read_only=True) as opened:  # every reply that came to an end was written once
        assert opened.spent()["tiny"]["requests"] == 48 * KILLS
    assert not list(temporary.iterdir()), "what killed runs read the prompts into goes with the next one"


@pytest.mark.slow
def test_ctrl_c_writes_what_has_ended_and_a_second_one_leaves_at_once(folder: Path, tmp_path: Path) -> None:
    prompts, out = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {i}?"} for i in range(200)]), tmp_path / "out"
    words = ["generate", prompts, "--n", 4, "--max-tokens", 200, "--keep", "cut", "--local", f"{folder},batch=8", "--out", out]

    def begun(rows: int) -> Callable[[], bool]:
        return lambda: answered(out.with_name(f"{out.name}.generate.sqlite")) > rows

    done = stopped(*words, when=begun(8), by=signal.SIGINT)
    assert done.returncode == 3 and "same command again" in done.stderr and "Traceback" not in done.stderr
    kept = answered(out.with_name("out.generate.sqlite"))
    assert 8 < kept < 800 and len(texts(out)) >= kept - 8
    # Replies that take seconds, so that some are being written when the second one comes.
    words[words.index("--max-tokens") + 1], out = 1500, tmp_path / "long"
    words[-1] = out
    with started(*words) as process:
        assert wait_for(begun(0), process)
        time.sleep(0.3)  # eight end together at their length: the next eight are in the midst of theirs
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.wait(timeout=20) == 130
    assert 0 < answered(out.with_name("long.generate.sqlite")) < 800


def test_a_reply_that_leaves_no_room_for_a_prompt_is_refused_at_once(model: LocalModel, generating: Any) -> None:
    job = generating({}, 2)
    with pytest.raises(UserError, match=f"--max-tokens {model.most} leaves tiny no room"):
        generate(job.prompts, job.folder / "out", options=GenerateOptions(max_tokens=model.most), local=[model])
    assert not (job.folder / "out.generate.sqlite").exists()


def test_a_dry_run_prices_what_costs_something(model: LocalModel, generating: Any, prices: str) -> None:
    job = generating({}, 4)
    options = GenerateOptions(n=2, max_tokens=20, prices=prices, base_url=job.server.base_url)

    def told(*names: str) -> dict[str, Any]:
        with prepared(job.prompts, job.folder / "out", options, names, [model]) as plan:
            return estimate(plan)

    both = told("judge-a")
    assert [row["local"] for row in both["models"]] == [False, True]
    assert both["cost_at_most"] == both["models"][0]["cost_at_most"] > 0
    assert told()["cost_at_most"] is None and told("unpriced")["cost_at_most"] is None


def test_a_folder_is_one_model_with_and_without_a_slash(folder: Path) -> None:
    assert LocalModel(f"{folder}/").name == LocalModel(str(folder)).name == str(folder)
