"""How many pairs a second does training take, beside Hugging Face TRL on the same model and the same tokens?

    python benchmarks/train_speed.py [--quick] [--sweep] [--json] [--runs 5] [--device cpu|cuda] [--threads N] [--part NAME]
        [--lora RANK] [--tiny]

Policies (hard-label DPO) and reward models (Bradley-Terry) train on UltraFeedback-shaped data, real lengths and random words, once with
all six pairs of a prompt's four completions and once with the best against the worst. Three sides, each a process of its own, take
turns: `mmpo`, which computes each prompt and completion once; TRL as shipped, which pads batches of eight pairs in random order; TRL on
data that lies sorted by length. Model folder, dtype, optimizer, clipping, schedule, pairs a step and threads are the same.

Nothing is timed before a run with the same pairs in every step has given the same tokens on both sides, and losses equal to 1e-4. A run
is timed from its first batch's loading to its last step's end, without imports, tokenising and reference; all sides have then done a
forward and a backward pass. The first run holds what comes once: Adam's state, and `mmpo`'s check of its own reference. `mmpo` and TRL
as shipped train on the same prompts, an evenly spaced sample of 1,000. The sorted side gets evenly spaced batches of all 1,000 prompts'
sorted pairs: sorting the sample alone would leave padding that real data does not have. The bound of a ratio is what the tokens alone
would give over the whole 1,000 prompts: TRL's padded tokens over the tree's. Memory is the resident set's peak while training, and what
of it is above the loaded model; the longest sorted batches are in no sample, so that the sorted side's is too small.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from train_data import Data, evenly, make_data, pairs_table
from train_model import SHAPES, VOCABULARY, save_models
from train_sides import BATCH, Plan, Side, interleaved, spread, traces

from mmpo.train.model import multiplies_bfloat16

__all__ = ["main"]

TOLERANCE = 1e-4
TRACE_STEPS = 8
MEASURES = ("policy_all_pairs", "policy_one_pair", "reward_all_pairs", "reward_one_pair")
LOW = ("policy_bf16", "reward_bf16")
NAMES = {"mmpo": "mmpo", "bf16": "mmpo --bf16", "shipped": "TRL as shipped", "sorted": "TRL, sorted by length"}


@dataclass(frozen=True)
class Size:
    """whole: prompts of the data. all_pairs, one_pair: prompts of a run. pairs_per_step: of an optimizer step. scale: of all lengths.

    trace, trace_scale: prompts, in TRACE_STEPS steps, and lengths of the run that compares losses. sweep: pairs of a run of the sweep,
    at half the lengths. low, low_scale: prompts and lengths of a run in bfloat16 on a CPU.
    """

    whole: int = 1000
    all_pairs: int = 6
    one_pair: int = 32
    pairs_per_step: int = 64
    scale: float = 1.0
    trace: int = 8
    trace_scale: float = 0.25
    sweep: int = 24
    low: int = 6
    low_scale: float = 1.0
    runs: int = 5


FULL = Size()
QUICK = Size(all_pairs=4, one_pair=16, scale=0.125, trace_scale=0.125, sweep=12, low=4, low_scale=0.5, runs=3)
TINY = Size(whole=40, all_pairs=2, one_pair=8, scale=0.03, trace_scale=0.03, low=1, low_scale=0.03, runs=1)
CUDA = Size(all_pairs=88, one_pair=512, sweep=384)
RATIOS, COMPLETIONS = (0.4, 1, 2, 5), (2, 4, 8)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two to three minutes: lengths an eighth, few prompts, three runs, no sweep"
    )
    parser.add_argument("--sweep", action="store_true", help="with --quick: the sweep as well")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each side (5; 3 with --quick)")
    parser.add_argument("--device", choices=list(SHAPES), default="cpu", help="cuda: a larger model, bfloat16, more prompts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, in every process")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="both sides train an adapter (off)")
    parser.add_argument("--tiny", action="store_true", help="seconds: does it run? No figure means anything")
    parser.add_argument(
        "--part", action="append", choices=[*MEASURES, *LOW, "sweep"], help="this part only; may be given again (all)"
    )
    options = parser.parse_args()
    size = TINY if options.tiny else QUICK if options.quick else CUDA if options.device == "cuda" else FULL
    size = replace(size, runs=options.runs or size.runs)
    low = LOW if options.device == "cpu" and not options.lora else ()
    parts = options.part or [*MEASURES, *low, *(["sweep"] if options.sweep or not options.quick else [])]
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = save_models(Path(scratch), SHAPES[options.device])
        plan = Plan(Path(scratch), models, options.device, options.threads, size.runs, int(options.device == "cuda"), options.lora)
        head(plan, size)
        for task in ("policy", "reward"):
            if any((part.startswith(task) and part not in LOW) or (part, task) == ("sweep", "policy") for part in parts):
                compare_traces(plan, task, size)
        for name in MEASURES:
            if name in parts:
                ratios |= measure(plan, name, size)
        for name in LOW:
            if name in parts:
                ratios |= measure_bfloat16(plan, name, size)
        if "sweep" in parts:
            sweep(plan, size)
    aims = (
        "5 and 3.5 sorted (all pairs), 2.5 and 1.3 sorted (one pair)"
        if options.device == "cpu"
        else "4 (all pairs), 1.5 (one pair)"
    )
    print(f"aims: {aims}; memory never above TRL's")
    if options.json:
        print(json.dumps({"ratios": ratios}))


def head(plan: Plan, size: Size) -> None:
    """What is compared, and what a ratio does not say."""
    shape = SHAPES[plan.device]
    print(
        f"trl {version('trl')}, transformers {version('transformers')}, torch {version('torch')}; {plan.device}, {plan.threads} threads\n"
        f"Llama, {shape.layers} layers of {shape.hidden}, {shape.inner} inside, vocabulary {VOCABULARY:,}: "
        f"{shape.body_share:.0%} of the operations are the body's; {'bfloat16' if plan.device == 'cuda' else 'float32'}"
    )
    if plan.device == "cpu":
        print(
            "on a CPU TRL's output layer scores every position, on CUDA only completions: no ratio of a policy here holds on a GPU"
        )
    print(
        f"lengths times {size.scale:g}, steps of {size.pairs_per_step} pairs or a whole run; {plan.runs} runs of each side, interleaved; "
        "median (min - max)",
        flush=True,
    )


def compare_traces(plan: Plan, task: str, size: Size) -> None:
    """Both sides on the same pairs in the same order, at a learning rate that moves the losses; RuntimeError where they differ."""
    data = make_data(size.trace, scale=size.trace_scale)
    table = pairs_table(data, np.arange(len(data.pairs)))
    ours, other = traces(plan, task, table, pairs_per_step=len(data.pairs) // TRACE_STEPS, learning_rate=1e-3)
    off = max(abs(a - b) for a, b in zip(ours["losses"], other["losses"], strict=True))
    norms = max(abs(a - b) / b for a, b in zip(ours["norms"], other["norms"], strict=True))
    told = f"losses {' '.join(f'{loss:.4f}' for loss in ours['losses'])}, at most {off:.1e} apart; gradient norms {norms:.1e} of their size"
    bound = TOLERANCE if plan.device == "cpu" else 1e-2  # bfloat16 keeps three digits
    if ours["digest"] != other["digest"] or off > bound or np.ptp(ours["losses"]) < 100 * TOLERANCE:
        raise RuntimeError(f"{task}: the sides do not train the same or the losses do not move: {told}; TRL {other['losses']}")
    print(f"{task}: same tokens, {len(ours['losses'])} same steps of {len(ours['rows'][0])} pairs: {told}", flush=True)


def measure(plan: Plan, name: str, size: Size) -> dict[str, float]:
    """One measurement: a table of the sides, and the ratios to TRL's two ways."""
    one_pair = name.endswith("one_pair")
    data = make_data(size.whole, one_pair=one_pair, scale=size.scale)
    tables = samples(data, size.one_pair if one_pair else size.all_pairs)
    sides = interleaved(plan, name.split("_")[0], tables, pairs_per_step=size.pairs_per_step)
    print(
        f"{name}: {sides['mmpo'].runs[0]['pairs']} pairs a run; mmpo's batches: {sides['mmpo'].way}; "
        f"{data.left_out} drawn prompts were too long and are in no side's data"
    )
    print(f"  {'':22} {'pairs/s':>22} {'tokens/pair':>12} {'peak, MiB':>10} {'above model':>12} {'reference, s':>13}")
    for key, side in sides.items():
        reference = f"{side.reference:.1f}" if name.startswith("policy") else "-"
        print(
            f"  {NAMES[key]:22} {spread(side.rates()):>22} {side.tokens_a_pair():12.0f} {side.peak():10.0f} "
            f"{side.peak() - side.loaded:12.0f} {reference:>13}"
        )
    ratios = {}
    whole = data.tokens_a_pair(BATCH)
    for key, label in (("shipped", name), ("sorted", f"{name}_sorted")):
        found = against(sides["mmpo"], sides[key])
        ratios[label] = statistics.median(found)
        tokens = sides[key].tokens_a_pair() / sides["mmpo"].tokens_a_pair()
        print(
            f"  {label}: {spread(found)} times; tokens computed {tokens:.2f}, bound over the whole data "
            f"{whole[key] / whole['mmpo']:.2f}"
        )
    above = {key: side.peak() - side.loaded for key, side in sides.items()}
    print(f"  memory above the model: {above['mmpo'] / above['shipped']:.2f} times TRL's as shipped")
    sys.stdout.flush()
    return ratios


def measure_bfloat16(plan: Plan, name: str, size: Size) -> dict[str, float]:
    """`--bf16` beside float32, both ours, in pairs a CPU second; nothing where the CPU has no instructions for it."""
    if not multiplies_bfloat16():
        print(f"{name}: left out, this CPU has no instructions for bfloat16 (avx512_bf16 or AMX)")
        return {}
    task, data = name.split("_")[0], make_data(size.whole, scale=size.low_scale)
    table = samples(data, size.low)["mmpo"]
    plan = replace(plan, warm=1)
    sides = interleaved(plan, task, {"mmpo": table, "bf16": table}, pairs_per_step=size.pairs_per_step, trace=True)
    print(
        f"{name}: {table.num_rows} pairs a run, lengths times {size.low_scale:g}; products in bfloat16: {multiples()} times as fast"
    )
    for key, side in sides.items():
        print(f"  {NAMES[key] if key == 'bf16' else 'mmpo, float32':22} {spread(side.rates('cpu')):>22} pairs a CPU second")
    found = [low / full for low, full in zip(sides["bf16"].rates("cpu"), sides["mmpo"].rates("cpu"), strict=True)]
    off = max(abs(a - b) for a, b in zip(sides["bf16"].losses, sides["mmpo"].losses, strict=True))
    print(
        f"  {name}_over_float32: {spread(found)} times; losses of {len(sides['mmpo'].losses)} steps at most {off:.1e} apart",
        flush=True,
    )
    if off > 1e-2:
        raise RuntimeError(f"{name}: losses are more than 1e-2 apart: {sides['bf16'].losses} and {sides['mmpo'].losses}")
    return {f"{name}_over_float32": statistics.median(found)}


def multiples() -> str:
    """How many times as fast one thread multiplies matrices of a pass in bfloat16 as in float32, of 2,048 x 1,024 by 1,024 x 1,024."""
    took = {}
    for kind in (torch.float32, torch.bfloat16):
        states, weight = torch.ones(2048, 1024, dtype=kind), torch.ones(1024, 1024, dtype=kind)
        seconds = []
        for _ in range(5):
            began = time.process_time()
            torch.nn.functional.linear(states, weight)
            seconds.append(time.process_time() - began)
        took[kind] = min(seconds)
    return f"{took[torch.float32] / took[torch.bfloat16]:.1f}"


def samples(data: Data, prompts: int) -> dict[str, pa.Table]:
    """What each side trains on: whole prompts evenly spaced by size, and evenly spaced sorted batches of as many pairs."""
    chosen = evenly(np.argsort(data.tree_tokens(), kind="stable"), prompts)
    pairs = np.flatnonzero(np.isin(data.pairs[:, 0], chosen))
    batches = evenly(data.sorted_batches(BATCH), max(1, len(pairs) // BATCH))
    table = pairs_table(data, pairs)
    return {"mmpo": table, "shipped": table, "sorted": pairs_table(data, np.concatenate(batches))}


def against(ours: Side, other: Side) -> list[float]:
    """Ratio of pairs a second, turn by turn."""
    return [a / b for a, b in zip(ours.rates(), other.rates(), strict=True)]


def sweep(plan: Plan, size: Size) -> None:
    """Policies on all pairs, by prompt:completion length ratio and by completions a prompt; one run of each side, lengths halved."""
    print("sweep: policy, all pairs, half the lengths, one run each; times TRL (tokens computed, bound over the whole data)")
    print(f"  {'completions':>11} {'prompt : completion':>20} {'as shipped':>20} {'sorted':>20}")
    cells = [(4, ratio) for ratio in RATIOS] + [(completions, None) for completions in COMPLETIONS]
    for completions, ratio in cells:
        data = make_data(size.whole, completions, ratio=ratio, scale=size.scale / 2)
        prompts = max(1, round(size.sweep * 2 / (completions * (completions - 1))))
        sides = interleaved(
            replace(plan, runs=1), "policy", samples(data, prompts), pairs_per_step=size.pairs_per_step, prompt_limit=1024
        )
        whole, cell = data.tokens_a_pair(BATCH), []
        for key in ("shipped", "sorted"):
            tokens = sides[key].tokens_a_pair() / sides["mmpo"].tokens_a_pair()
            cell.append(f"{against(sides['mmpo'], sides[key])[0]:.2f} ({tokens:.2f}, {whole[key] / whole['mmpo']:.2f})")
        print(f"  {completions:11} {'as drawn' if ratio is None else ratio:>20} {cell[0]:>20} {cell[1]:>20}", flush=True)


if __name__ == "__main__":
    main()
