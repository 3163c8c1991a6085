"""Does generating keep its places busy at an endpoint, and how much faster is a local model than padded batches?

    python benchmarks/generate.py [--quick] [--json] [--runs 5] [--model DIR]

Endpoint: the server of judge.py, whose answers take a lognormal time (median 0.2 s, 99th percentile 5 s; half of both with --quick), is
asked for four candidates a prompt, 64 requests in flight. The ideal is the makespan of list-scheduling the latencies that it drew. The
ratio is the ideal over the time from the first request's arrival to the last reply's being durable in the journal; beside it, in turn, the
bare openai client behind a semaphore, which keeps nothing.

Local: `LocalModel`, 16 replies at a time, beside `model.generate` of transformers over padded batches of 16, in the order of the input, on
the same model and prompts of mixed length; a reply ends after its own number of tokens, drawn from an exponential distribution (mean 48, at
most 256) for both, so that both write the same tokens. Interleaved, CPU seconds a token. --model: a folder (default: a random Llama of
8 layers and 256 units).
"""

import argparse
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from figures import spread
from judge import IN_FLIGHT, schedule

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

from openai_server import serving  # noqa: E402

from mmpo.annotate import GenerateOptions  # noqa: E402
from mmpo.annotate.generate import prepared  # noqa: E402
from mmpo.annotate.generate.requests import Sampling, Takes  # noqa: E402

EACH, AT_A_TIME, LONGEST, MEAN = 4, 16, 256, 48
CLIENT = """
import sys, time, json
from mmpo.annotate import GenerateOptions, generate
prompts, out, url, each, in_flight, requests = sys.argv[1:]
marks = {}
def progress(counts, phase):
    if phase == "writing":
        marks["ended"] = time.time()
options = GenerateOptions(base_url=url, n=int(each), concurrency=int(in_flight))
summary = generate(prompts, out, options=options, models=["writer"], progress=progress)
assert summary["finished"] and summary["candidates"] == int(requests), summary
print(json.dumps(marks))
"""


def bodies(prompts: Path, file: Path) -> None:
    """The bodies that generating sends, for a client that keeps nothing."""
    options = GenerateOptions(n=EACH)
    with prepared(prompts, file.with_name("none"), options, ["writer"]) as plan, file.open("wb") as out:
        sampling = Sampling(plan.models[0], options, Takes())
        for rows in plan.feedback.rows(scores=False, reference=None):
            out.writelines(orjson.dumps(request.body) + b"\n" for row in rows for request in sampling.of(row))


def endpoint(runs: int, prompts: int, latency: tuple[float, float]) -> dict[str, float]:
    """The ratios of the ideal to what the server saw of us, and of a bare client behind a semaphore; medians of several runs, in turn."""
    ratios: dict[str, list[float]] = {"mmpo": [], "semaphore": []}
    with tempfile.TemporaryDirectory() as scratch:
        file, bare = Path(scratch) / "prompts.jsonl", Path(scratch) / "bodies.jsonl"
        file.write_text("".join(json.dumps({"prompt": f"Question {i}: what follows?"}) + "\n" for i in range(prompts)))
        bodies(file, bare)
        for number in range(runs):
            plan = {"defaults": {"writes": True}, "latency": dict(zip(("median", "p99"), latency)), "seed": 100 + number}
            for kind, found in ratios.items():
                with serving(plan) as server:
                    words = [
                        "-c",
                        CLIENT,
                        str(file),
                        f"{scratch}/{number}",
                        server.base_url,
                        str(EACH),
                        str(IN_FLIGHT),
                        str(prompts * EACH),
                    ]
                    if kind != "mmpo":
                        words = [str(HERE / "judge_clients.py"), kind, str(bare), server.base_url, str(IN_FLIGHT)]
                    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True)
                    log = server.log()[1:]  # without the probe or the warm-up
                if len({row["digest"] for row in log}) != len(log):
                    raise RuntimeError("a request was sent twice")
                _, ideal = schedule([row["latency"] for row in log], IN_FLIGHT)
                found.append(ideal / (json.loads(done.stdout.splitlines()[-1])["ended"] - log[0]["arrived"]))
    print(
        f"endpoint: {prompts * EACH:,} requests, median {latency[0]} s, {IN_FLIGHT} in flight: of the ideal {spread(ratios['mmpo'], 3)}; "
        f"bare client behind a semaphore {spread(ratios['semaphore'], 3)}"
    )
    return {"of_ideal": statistics.median(ratios["mmpo"]), "semaphore_of_ideal": statistics.median(ratios["semaphore"])}


class Asked:
    """One prompt for `LocalModel`, whose reply ends after so many tokens."""

    def __init__(self, words: int, tokens: int, seed: int) -> None:
        text = " ".join(f"word{(seed * 7 + place) % 97}" for place in range(words))
        self.body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 1.0, "seed": seed,
        }  # fmt: skip
        self.reply: Any = None

    def done(self, reply: Any) -> None:
        self.reply = reply


def mixed(count: int) -> list[Asked]:
    """Prompts of 5 to 200 words and replies of an exponential distribution of lengths."""
    drawn = random.Random(1)
    return [Asked(drawn.randrange(5, 201), min(LONGEST, 1 + int(drawn.expovariate(1 / MEAN))), seed) for seed in range(count)]


def ours(engine: Any, asked: Sequence[Asked]) -> int:
    """Tokens written by the engine."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for one in [*asked, None]:
        inbox.put(one)
    worker = threading.Thread(target=engine.serve, args=(inbox, lambda: False))
    worker.start()
    worker.join()
    return sum(one.reply["usage"]["completion_tokens"] for one in asked)


def padded(engine: Any, asked: Sequence[Asked]) -> int:
    """Tokens written by `model.generate` over batches, each as long as its longest reply; those beyond a reply's own end count not."""
    import torch

    tokenizer = engine.tokenizer
    tokenizer.padding_side = "left"
    for start in range(0, len(asked), AT_A_TIME):
        batch = asked[start : start + AT_A_TIME]
        texts = [tokenizer.apply_chat_template(one.body["messages"], tokenize=False, add_generation_prompt=True) for one in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(engine.model.device)
        with torch.inference_mode():
            engine.model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=max(one.body["max_tokens"] for one in batch),
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
    return sum(one.body["max_tokens"] for one in asked)


def local(runs: int, replies: int, folder: str | None) -> dict[str, float]:
    """How many times as many tokens a CPU second (on a GPU: a second) `LocalModel` writes as padded batches do."""
    import torch

    from mmpo.train import LocalModel
    from mmpo.train.model import tiny_model, tiny_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = scratch
            tokenizer = tiny_tokenizer([" ".join(f"word{i}" for i in range(97))] * 2)
            tiny_model("policy", tokenizer, size=256, layers=8).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        engine = LocalModel(folder, batch=AT_A_TIME)
    engine.ends = frozenset()  # a reply ends after its own number of tokens
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    speeds: dict[str, list[float]] = {"ours": [], "padded": []}
    for number in range(runs + 1):
        for name, work in (("ours", ours), ("padded", padded)):
            asked = mixed(replies if number else AT_A_TIME)
            began = clock()
            tokens = work(engine, asked)
            if number:  # the first one warms up
                speeds[name].append(tokens / (clock() - began))
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["padded"])]
    print(
        f"local: {replies} replies, {AT_A_TIME} at a time, {sum(one.body['max_tokens'] for one in mixed(replies)):,} tokens; a second "
        f"{spread(speeds['ours'], 0)} against {spread(speeds['padded'], 0)} in padded batches: {spread(ratios, 2)} times"
    )
    return {"local_vs_padded": statistics.median(ratios)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests, half the latency, three runs")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each measurement (5; 3 with --quick)")
    parser.add_argument("--model", help="a folder of a causal language model for the local half")
    parser.add_argument("--only", choices=("endpoint", "local"), help="one half alone")
    options = parser.parse_args()
    os.environ.pop("OPENAI_API_KEY", None)
    runs = options.runs or (3 if options.quick else 5)
    ratios: dict[str, float] = {}
    if options.only != "local":
        ratios |= endpoint(runs, 300 if options.quick else 1_500, (0.1, 2.5) if options.quick else (0.2, 5.0))
    if options.only != "endpoint":
        ratios |= local(runs, 96 if options.quick else 192, options.model)
    print("aims: of_ideal >= 0.97; local_vs_padded >= 2")
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
