"""How many completions a second does a reward model grade, beside the plain padded loop of transformers on the same tokens?

    python benchmarks/score.py [--quick] [--json] [--runs 5]

A Llama of random weights with a score layer grades prompts with k completions each. Sides, each a process of its own, in turn: `mmpo`, as
`mmpo score` computes it, a prompt once for all its completions; *padded*, which hands rows to the model as
they stand, eight at a time, padded to the longest; *sorted*, the same with the rows sorted by length first. One thread, float32, CPU
seconds of scoring alone: tokens are the same and made before. Scores must be the same to 1e-4. What `mmpo` takes once a
run to find out how the model may be run (three rows of the longest length, by trees and by rows) stands apart. Memory: the peak of the
resident set above what it was with the model loaded. The bound of a ratio is what the tokens alone would give: rows without padding over
the tree's.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from figures import spread

TOLERANCE = 1e-4
ROWS_AT_ONCE = 8
TOKENS = 4096
VOCABULARY = 4096
SIDES = ("mmpo", "padded", "sorted")


@dataclass(frozen=True)
class Case:
    """k: completions of each of so many prompts; tokens of a prompt and of a reply, medians of lognormal lengths (σ .4)."""

    k: int
    prompts: int
    prompt: int
    reply: int


CASES = {
    "k=4, long prompt": Case(4, 16, 700, 60),
    "k=8, long prompt": Case(8, 10, 700, 60),
    "k=4, long replies": Case(4, 16, 150, 200),
    "k=8, long replies": Case(8, 10, 150, 200),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="minutes: three prompts of each kind, long prompts alone, two runs")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each side (5; 2 with --quick)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run_side(given.side, CASES[given.case], given.quick)))
        return
    found = {
        name: measured(name, given.runs or (2 if given.quick else 5), given.quick)
        for name in list(CASES)[: 2 if given.quick else None]
    }
    if given.json:
        print(json.dumps({"benchmark": "score", **found}))


def measured(name: str, runs: int, quick: bool) -> dict[str, Any]:
    """One case, all sides in turn; prints its lines."""
    sides: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side, results in sides.items():
            line = [sys.executable, __file__, "--side", side, "--case", name, *(["--quick"] if quick else [])]
            results.append(json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
    ours = sides["mmpo"][0]
    apart = max(float(np.abs(np.subtract(ours["scores"], results[0]["scores"])).max()) for results in sides.values())
    if apart > TOLERANCE:
        sys.exit(f"{name}: scores are {apart:.2g} apart: no figure means anything")
    tokens = f"{ours['rows']:,} tokens in rows, {ours['tree']:,} in trees"
    once = [one["once"] for one in sides["mmpo"]]
    print(f"{name}: {len(ours['scores'])} completions, {tokens}; scores within {apart:.1g}; once a run {spread(once)} s")
    print("| side | completions/s | times mmpo's CPU | memory, MiB |")
    print("|---|---|---|---|")
    summary: dict[str, Any] = {"bound": ours["rows"] / ours["tree"], "apart": apart, "once": statistics.median(once)}
    for side, results in sides.items():
        rates = [len(one["scores"]) / one["seconds"] for one in results]
        ratios = [one["seconds"] / mine["seconds"] for one, mine in zip(results, sides["mmpo"], strict=True)]
        memory = [one["memory"] / 2**20 for one in results]
        print(f"| {side} | {spread(rates, 1)} | {spread(ratios)} | {spread(memory, 0)} |")
        summary[side] = {"rate": statistics.median(rates), "ratio": statistics.median(ratios), "memory": statistics.median(memory)}
    return summary


def run_side(side: str, case: Case, quick: bool) -> dict[str, Any]:
    """Scores of all completions in their order, CPU seconds, bytes above the loaded model, and tokens in rows and in trees."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from mmpo.train.batches import BATCHES
    from mmpo.train.data import PromptPairs, Rendered
    from mmpo.train.inference import predict_values
    from mmpo.train.model import choose_plan

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    }
    config = LlamaConfig(vocab_size=VOCABULARY, num_labels=1, pad_token_id=0, max_position_embeddings=4096, **sizes)
    model = LlamaForSequenceClassification(config).eval()
    random = np.random.default_rng(1)

    def tokens(median: int) -> list[int]:
        return random.integers(1, VOCABULARY, round(median * random.lognormal(0, 0.4))).tolist()

    prompts = []
    for number in range(3 if quick else case.prompts):
        start = tokens(case.prompt)
        items = [Rendered(np.array([*start, *tokens(case.reply)], dtype=np.int32), len(start)) for _ in range(case.k)]
        prompts.append(PromptPairs.without_pairs(f"{number:04}", items))
    rows = [item.ids for prompt in prompts for item in prompt.completions]
    with torch.inference_mode():  # what comes once: kernels
        model(input_ids=torch.ones(1, 8, dtype=torch.long))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.process_time()
    plan = choose_plan(model, "reward", max(map(len, rows))) if side == "mmpo" else None
    once, began = time.process_time() - began, time.process_time()
    if side == "mmpo":
        values = np.concatenate(predict_values(model, "reward", prompts, tokens=TOKENS, pad_token=0, device="cpu", plan=plan))
    else:
        values = padded(model, rows, sort=side == "sorted")
    seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded
    trees = sum(BATCHES["packed"].tokens([BATCHES["packed"].size(prompt.completions)]) for prompt in prompts)
    return {
        "scores": values.tolist(),
        "seconds": seconds,
        "once": once,
        "memory": memory,
        "rows": sum(map(len, rows)),
        "tree": int(trees),
    }


def padded(model: Any, rows: list[np.ndarray], *, sort: bool) -> np.ndarray:
    """The loop that everybody writes: rows in batches, padded on the right, with their attention mask."""
    import torch

    order = sorted(range(len(rows)), key=lambda place: -len(rows[place])) if sort else list(range(len(rows)))
    values = np.zeros(len(rows))
    with torch.inference_mode():
        for start in range(0, len(order), ROWS_AT_ONCE):
            places = order[start : start + ROWS_AT_ONCE]
            longest = max(len(rows[place]) for place in places)
            ids, mask = torch.zeros(len(places), longest, dtype=torch.long), torch.zeros(len(places), longest, dtype=torch.long)
            for row, place in enumerate(places):
                ids[row, : len(rows[place])], mask[row, : len(rows[place])] = torch.as_tensor(rows[place]), 1
            values[places] = model(input_ids=ids, attention_mask=mask).logits[:, 0].double().numpy()
    return values


if __name__ == "__main__":
    main()
