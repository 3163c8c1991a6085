"""The protocol end to end: a tiny model, taught to answer with a letter, behind a real OpenAI-compatible server (`transformers serve`).

That server takes logprobs, n and response_format and silently ignores them, so the probe must find out and several replies be drawn.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from cases import Judging
from command import wait_for

from mmpo.annotate.judge import RUBRICS, Capabilities, Judge, JudgeOptions, Question, Questions
from mmpo.annotate.rows import FeedbackRow
from mmpo.train.model.tiny import tiny_model, tiny_tokenizer

LETTERS = "BDF"


def lesson(number: int) -> list[dict[str, str]]:
    """A judging prompt like those of the test."""
    prompt, texts = [{"role": "user", "content": f"Question {number}?"}], ("Answer 0.", "Answer 1.")
    row = FeedbackRow(f"{number:032x}", prompt, ["a", "b"], texts, [None] * 2)
    return Questions(Judge("m"), JudgeOptions(), Capabilities()).messages(row, Question((0, 1), (RUBRICS["overall"],)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy that answers any judging prompt with B, D or F, each about as likely."""
    tokenizer = tiny_tokenizer([message["content"] for number in range(4) for message in lesson(number)], 700)
    policy = tiny_model("policy", tokenizer)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3)
    for step in range(60):
        prompt = tokenizer.apply_chat_template(lesson(step % 4), add_generation_prompt=True, return_dict=False)
        reply = tokenizer(LETTERS[step % 3] + "<|end|>")["input_ids"]
        ids = torch.tensor([prompt + reply])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        policy(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("served") / "judge"
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Where the server listens: base_url."""
    pytest.importorskip("fastapi", reason="transformers serve needs the packages of transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = tmp_path_factory.mktemp("hub")
    words = ("serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2, trust_env=False).is_success
        return False

    with (
        (cache / "serve.log").open("w+") as log,
        subprocess.Popen(
            [str(Path(sys.executable).with_name("transformers")), *words], env=environment, stdout=log, stderr=log
        ) as process,
    ):
        try:
            if not wait_for(answers, process, 90):
                log.seek(0)
                pytest.fail(f"transformers serve did not start: {log.read()[-1500:]}")
            yield SimpleNamespace(base_url=f"http://127.0.0.1:{port}/v1")
        finally:
            process.terminate()


@pytest.mark.slow
def test_a_real_server_is_judged_with_by_several_replies(model: Path, served: SimpleNamespace, tmp_path: Path) -> None:
    job = Judging(served, tmp_path, 4, 2)
    [told] = job.judge(model=str(model), samples=4, concurrency=2)["judges"]
    abilities = json.loads((job.out / "manifest.json").read_text())["recipe"]["judges"][0]["abilities"]
    assert abilities["logprobs"] is False and abilities["several"] is False
    assert told["requests"] == 32 and told["answered"] >= 24
    found = job.comparisons()
    assert found and all(one["spread"] is not None for one in found)
    assert {round(one["gap"] * 4) for one in found} <= set(range(-12, 13))
    # The letters that it was taught, as they came over the wire.
    assert {one["limit"] for one in found} == {3.0} and told["prompt_tokens"] > 32 * 100
    before = told["prompt_tokens"]
    again = job.judge(model=str(model), samples=4, concurrency=2)
    assert again["judges"][0]["prompt_tokens"] - before <= before * (32 - told["answered"]) / 32 + 1
