"""The protocol end to end: a tiny model, taught to answer with a letter, behind a real OpenAI-compatible server (`transformers serve`).

That server takes logprobs, n and response_format and silently ignores them, so the probe must find out and several replies be drawn. It
samples only where the model's own generation_config does, and gives thinking apart where the tokenizer says how.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("torch", reason="the model that answers is one of torch")

import torch
from cases import Judging
from command import wait_for

from mmpo.annotate.judge import RUBRICS, Capabilities, Judge, JudgeOptions, Question, Questions
from mmpo.annotate.rows import FeedbackRow
from mmpo.train.model.tiny import tiny_model, tiny_tokenizer

LETTERS = "BDF"
SERVE = "from transformers.cli.transformers import main; main()"


def lesson(number: int) -> list[dict[str, str]]:
    """A judging prompt like those of the test."""
    prompt, texts = [{"role": "user", "content": f"Question {number}?"}], ("Answer 0.", "Answer 1.")
    row = FeedbackRow(f"{number:032x}", prompt, ["a", "b"], texts, [None] * 2)
    return Questions(Judge("m"), JudgeOptions(), Capabilities()).messages(row, Question((0, 1), (RUBRICS["overall"],)))


THOUGHT = "<think>G? No.</think>"
APART = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "content": {"close_pattern": "<[|]end[|]>", "content": "text"},
    },
}
"""By which the server takes thinking out of a reply (its tokenizer's `response_template`)."""


def taught(folder: Path, replies: list[str], *, samples: bool, steps: int) -> Path:
    """A tiny policy that answers any judging prompt with one of these replies, each about as likely."""
    texts = [message["content"] for number in range(4) for message in lesson(number)]
    tokenizer = tiny_tokenizer([*texts, *replies * 8], 700)
    tokenizer.response_template = APART
    policy = tiny_model("policy", tokenizer)
    policy.generation_config.do_sample = samples
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3)
    for step in range(steps):
        prompt = tokenizer.apply_chat_template(lesson(step % 4), add_generation_prompt=True, return_dict=False)
        reply = tokenizer(replies[step % len(replies)] + "<|end|>")["input_ids"]
        ids = torch.tensor([prompt + reply])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        policy(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serving(model: Path, cache: Path) -> Iterator[SimpleNamespace]:
    """Where the server listens, base_url, and the model that it serves."""
    pytest.importorskip("fastapi", reason="transformers serve needs the packages of transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache.mkdir()
    words = ("serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2, trust_env=False).is_success
        return False

    with (
        (cache / "serve.log").open("w+") as log,
        subprocess.Popen([sys.executable, "-c", SERVE, *words], env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            if not wait_for(answers, process, 240):
                log.seek(0)
                pytest.fail(f"transformers serve did not start: {log.read()[-1500:]}")
            yield SimpleNamespace(base_url=f"http://127.0.0.1:{port}/v1", model=str(model))
        finally:
            process.terminate()


@pytest.mark.slow
def test_a_real_server_is_judged_with_by_several_replies(tmp_path: Path) -> None:
    with serving(taught(tmp_path / "judge", list(LETTERS), samples=True, steps=60), tmp_path / "hub") as served:
        job = Judging(served, tmp_path, 4, 2)
        [told] = job.judge(model=served.model, samples=4, concurrency=2)["judges"]
        abilities = json.loads((job.out / "manifest.json").read_text())["recipe"]["judges"][0]["abilities"]
        assert abilities["logprobs"] is False and abilities["several"] is False
        assert told["requests"] == 32 and told["answered"] >= 24 and told["samples_differ"] is True
        found = job.comparisons()
        assert found and all(one["spread"] is not None for one in found) and any(one["spread"] > 0 for one in found)
        assert {round(one["gap"] * 4) for one in found} <= set(range(-12, 13))
        # The letters that it was taught, as they came over the wire.
        assert {one["limit"] for one in found} == {3.0} and told["prompt_tokens"] > 32 * 100
        before = told["prompt_tokens"]
        again = job.judge(model=served.model, samples=4, concurrency=2)
        assert again["judges"][0]["prompt_tokens"] - before <= before * (32 - told["answered"]) / 32 + 1


@pytest.mark.slow
@pytest.mark.whole
def test_a_real_server_that_gives_thinking_apart_and_never_samples(tmp_path: Path) -> None:
    with serving(taught(tmp_path / "judge", [THOUGHT + "B"], samples=False, steps=40), tmp_path / "hub") as served:
        job = Judging(served, tmp_path, 10, 2)
        [told] = job.judge(model=served.model, samples=2, concurrency=2)["judges"]
        assert told["answered"] == told["requests"] == 40
        assert {(one["gap"], one["spread"], one["note"]) for one in job.comparisons()} == {(2.0, None, None)}
        assert told["samples_differ"] is False and told["sampled_alike"] == 20
        replies = {json.loads(reply)[0][0] + "|" + json.loads(reply)[0][3] for (reply,) in job.rows("SELECT reply FROM answers")}
        assert replies == {"B|G? No."}
        room = json.loads((job.out / "manifest.json").read_text())["recipe"]["judges"][0]["abilities"]["room"]
        assert room > 0, "eight tokens do not hold a thought: the probe found out"
