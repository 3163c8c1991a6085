"""The paper's claims on pretrained models that are fine-tuned, with controls; part (c) of benchmarks/claims.py.

    python benchmarks/claims_pretrained.py [--quick] [--set NAME] [--way top:2|lora|policy] [--seeds 3] [--out FILE] [--json]

SmolLM2-135M-Instruct (`make models`) becomes a reward model: by its two uppermost layers on kept hidden states, and by LoRA; and, briefly,
a policy. Every run is measured after each epoch, far into overfitting, on prompts that were not trained on: accuracy, likelihood of the
judge's direction and expected calibration error, raw and with the temperature that fits validation prompts best, and, where a rater
was held out, against that one's votes. Objectives differ in their targets alone, of untied pairs:

- bt: 1; mmpo@.75, mmpo@.9: σ(γm) with that mean; matched@...: the same mean for every pair; shuffled@...: mmpo's targets, permuted.

All objectives of a seed share prompts, split, order and the weights of the new score layer, so that differences are paired. What is
reported at one epoch is the epoch of the best scaled likelihood on validation prompts, for each objective its own; the last is beside it.
Computed in bfloat16 where the processor multiplies in it, which takes less than half the time.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mmpo.pipeline.margins import gamma_for_mean_target, sigmoid
from mmpo.pipeline.metrics import accuracy, cross_entropy, ece_label, ece_vote, temperature_fit
from mmpo.pipeline.tables import PAIRS, completion_id, prompt_id, with_metadata

ROOT = Path(__file__).resolve().parent.parent
MODEL = Path(os.environ.get("MMPO_MODELS") or ROOT / "models") / "smollm2"
MEANS = (0.75, 0.9)
TOP_LAYERS, LORA_RANK, LOG_ODDS = 2, 8, 16.0
RATES = {"top:2": 3e-4, "lora": 5e-4, "policy": 1e-4}
STEPS_OF_EPOCH = 12
MEASURES = ("accuracy", "nll", "ece", "nll_scaled", "ece_scaled", "vote_accuracy", "vote_ece")

Completions = list[tuple[str, float]]
Vote = tuple[int, int]
"""Of raters that made no part of the margin: how many prefer the chosen completion, of how many that prefer one."""


@dataclass(frozen=True)
class Size:
    """train, validation, test: prompts. completions: of a prompt at most. length: tokens of prompt and completion, half of them at most
    the prompt's. Texts are cut so that a fine-tuned model is to be had in minutes: what is measured is the objectives' difference.
    """

    train: int
    validation: int
    test: int
    completions: int
    length: int
    epochs: int
    seeds: int


SIZES = {
    "top:2": Size(train=48, validation=16, test=48, completions=4, length=128, epochs=6, seeds=5),
    "lora": Size(train=16, validation=8, test=20, completions=3, length=112, epochs=3, seeds=3),
    "policy": Size(train=16, validation=8, test=24, completions=4, length=112, epochs=3, seeds=3),
}
QUICK = {
    "top:2": Size(train=10, validation=4, test=12, completions=3, length=112, epochs=2, seeds=1),
    "lora": Size(train=4, validation=4, test=8, completions=2, length=112, epochs=3, seeds=1),
    "policy": Size(train=4, validation=4, test=8, completions=2, length=112, epochs=3, seeds=1),
}
WAYS_OF = {"alpaca": ("top:2", "lora", "policy"), "arena": ("top:2",), "ragchecker": ("top:2",)}
ONE_PAIR = {"ragchecker": 2}
"""Sets with one pair a prompt: so many times the prompts."""


def available() -> bool:
    """Whether the model and the graded sets are here."""
    return (MODEL / "model.safetensors").is_file() and Path(os.environ.get("MMPO_REAL_DATA") or "").is_dir()


def run(
    quick: bool,
    sets: Sequence[str] = (),
    ways: Sequence[str] = (),
    seeds: int | None = None,
    out: Path | None = None,
    times: int = 1,
) -> dict[str, Any]:
    """All measurements: {"rows": one for every set, way, objective, seed and epoch; "compared": differences; "cpu_seconds"}; as far as
    it has come in the file `out`. times: as many prompts.
    """
    begun, rows = time.process_time(), []
    found: dict[str, Any] = {"rows": rows, "sizes": {way: asdict(size) for way, size in (QUICK if quick else SIZES).items()}}
    for name in sets or (["alpaca"] if quick else list(WAYS_OF)):
        graded = SETS[name](Path(os.environ["MMPO_REAL_DATA"]))
        for way in ways or (["top:2"] if quick else WAYS_OF[name]):
            size, more = (QUICK if quick else SIZES)[way], times * ONE_PAIR.get(name, 1)
            size = replace(size, train=more * size.train, validation=more * size.validation, test=more * size.test)
            for seed in range(seeds or size.seeds):
                means = MEANS if name == "alpaca" and way == "top:2" and not quick else MEANS[-1:]
                for row in measured(graded, way, size, seed, means):
                    rows.append({"set": name, "way": way, **row})
                found |= {"compared": compared(rows), "cpu_seconds": time.process_time() - begun}
                if out is not None:
                    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(f"{name}, {way}, seed {seed}: {time.process_time() - begun:.0f} CPU s so far", file=sys.stderr, flush=True)
    return found


# --- graded sets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graded:
    """A prompt: completions with their scores, or pairs (first, second, gap, votes for the first and of how many)."""

    prompt: str
    completions: Completions = ()  # type: ignore[assignment]
    pairs: Sequence[tuple[str, str, float, Vote]] = ()


def alpaca(folder: Path) -> list[Graded]:
    """A judge's log-odds of ten models against one reference, clipped at ±16."""
    frame = pd.read_parquet(folder / "alpaca_eval2_pref.parquet")
    frame = frame[~frame["generator"].isin(["NullModel", "gpt4_gamed", "gpt4_1106_preview"])].dropna(subset=["preference"])
    p = (frame["preference"] - 1).clip(1e-7, 1 - 1e-7)
    return by_prompt(frame.assign(score=np.log(p / (1 - p)).clip(-LOG_ODDS, LOG_ODDS)))


def arena(folder: Path) -> list[Graded]:
    """GPT-4's grades 1 to 10 of up to 16 models."""
    frame = pd.read_parquet(folder / "arena_bench_gpt4_scores.parquet").dropna(subset=["score"])
    return by_prompt(frame.groupby(["prompt", "response"], as_index=False)["score"].mean())


def ragchecker(folder: Path) -> list[Graded]:
    """One person's margin, −2 to 2; another one's vote on the same pair is held out."""
    frame = pd.read_parquet(folder / "ragchecker_human_pairs.parquet")
    texts = ["prompt", "response_1", "response_2"]
    both = frame.pivot_table(index=texts, columns="annotation", values="overall", aggfunc="first").dropna().reset_index()
    both = both[both["response_1"] != both["response_2"]]
    found = []
    for row in both.to_dict("records"):  # positive: the second is better
        vote = (int(row[1] > 0), int(row[1] != 0))
        found.append(Graded(row["prompt"], pairs=[(row["response_2"], row["response_1"], float(row[0]), vote)]))
    return found


def by_prompt(frame: pd.DataFrame) -> list[Graded]:
    """Prompts with all their completions, each text once, the shortest prompts' share that fits."""
    frame = frame[frame["response"].str.strip().astype(bool)].drop_duplicates(["prompt", "response"])
    parts = frame.sort_values(["prompt", "response"]).groupby("prompt")
    return [Graded(str(prompt), list(zip(part["response"], part["score"].astype(float)))) for prompt, part in parts]


SETS: dict[str, Callable[[Path], list[Graded]]] = {"alpaca": alpaca, "arena": arena, "ragchecker": ragchecker}


def pairs_of(graded: Sequence[Graded], completions: int, random: np.random.Generator) -> tuple[pa.Table, dict[int, Vote]]:
    """The untied pairs of some prompts as PAIRS, of at most so many drawn completions each; and held-out votes by row."""
    rows: list[dict[str, Any]] = []
    votes: dict[int, Vote] = {}
    for one in graded:
        pairs = list(one.pairs)
        if one.completions:
            drawn = [one.completions[place] for place in random.permutation(len(one.completions))[:completions]]
            pairs = [(*(a[0], b[0]), a[1] - b[1], (0, 0)) for i, a in enumerate(drawn) for b in drawn[:i]]
        elif len(pairs) > completions:
            pairs = [pairs[place] for place in random.permutation(len(pairs))[:completions]]
        prompt = [{"role": "user", "content": one.prompt}]
        identity = prompt_id(prompt)
        for first, second, gap, (prefer, of) in pairs:
            if abs(gap) < 1e-9:
                continue
            texts = (first, second) if gap > 0 else (second, first)
            chosen, rejected = (completion_id(identity, text) for text in texts)
            votes[len(rows)] = (prefer if gap > 0 else of - prefer, of)
            rows.append(
                {
                    "prompt_id": identity, "chosen_id": chosen, "rejected_id": rejected, "prompt": prompt,
                    **{side: [{"role": "assistant", "content": text}] for side, text in zip(("chosen", "rejected"), texts)},
                    "quality_margin": abs(gap), "preferring": 1, "raters": 1, "kind": "ai", "source": "claims",
                }
            )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=with_metadata(PAIRS, {})), votes


# --- runs -----------------------------------------------------------------------------------------------------------------------


def targets_of(margins: np.ndarray, means: Sequence[float], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Of every objective its targets, (pairs,)."""
    found = {"bt": np.ones(len(margins))}
    for mean in means:
        p = sigmoid(gamma_for_mean_target(margins, mean) * margins)
        found |= {f"mmpo@{mean}": p, f"matched@{mean}": np.full(len(p), p.mean()), f"shuffled@{mean}": random.permutation(p)}
    return found


def measured(graded: Sequence[Graded], way: str, size: Size, seed: int, means: Sequence[float]) -> Iterator[dict[str, Any]]:
    """One row for every objective and epoch."""
    import torch

    from mmpo.train.data import Renderer, prepare
    from mmpo.train.model import StateFile, freeze_below, kept_states, load_pretrained
    from mmpo.train.training import own_pad_token

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    random, kind = np.random.default_rng(seed), "policy" if way == "policy" else "reward"
    chosen = [graded[place] for place in random.permutation(len(graded))]
    bounds = np.cumsum([0, size.train, size.validation, size.test])

    def fresh() -> tuple[Any, Any]:
        torch.manual_seed(seed)  # the new score layer
        with quiet():
            model, tokenizer = load_pretrained(kind, str(MODEL), new_head=True)
            if kind == "reward":
                own_pad_token(model, tokenizer)
        return model, tokenizer

    model, tokenizer = fresh()
    splits, votes = [], {}
    most = size.length // 2
    chosen = fitting(chosen, Renderer(tokenizer, size.length, most))
    for part, (start, stop) in enumerate(zip(bounds, bounds[1:])):
        table, votes[part] = pairs_of(chosen[start:stop], size.completions, random)
        splits.append(prepare(table, np.ones(table.num_rows), Renderer(tokenizer, size.length, most)).prompts)
    train, validation, test = splits
    margins = np.concatenate([prompt.margin for prompt in train])
    cuts = np.cumsum([len(prompt.rows) for prompt in train])[:-1]
    cut = freeze_below(model, TOP_LAYERS) if way != "lora" else 0
    start_weights = {
        name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad and way != "lora"
    }
    with StateFile() as states, tempfile.TemporaryDirectory() as folder:
        for objective, p in targets_of(margins, means, random).items():
            if way == "lora":
                model, _ = fresh()
            with torch.no_grad():
                for name, value in model.named_parameters():
                    if name in start_weights:
                        value.copy_(start_weights[name])
            data = [replace(prompt, p=part) for prompt, part in zip(train, np.split(p, cuts), strict=True)]
            trainer, every_epoch = trainer_of(way, model, tokenizer, data, validation, test, size, seed, Path(folder))
            keeping = kept_states(model, cut, states) if way != "lora" else nullcontext()
            began = time.process_time()
            with keeping, quiet():
                trainer.train()
            seconds, last = time.process_time() - began, every_epoch[-1]
            print(f"  {objective}: {seconds:.0f} CPU s, {trainer.throughput}, loss {last[2]:.3f}", file=sys.stderr, flush=True)
            shared = {"objective": objective, "seed": seed, "mean_target": float(p.mean()), "pairs": len(p)}
            judged = sum(len(prompt.rows) for prompt in validation)
            for epoch, (z, rows, loss) in enumerate(every_epoch, start=1):
                yield {
                    **shared,
                    "epoch": epoch,
                    "train_loss": loss,
                    **measures(z[:judged], z[judged:], [votes[2][row] for row in rows]),
                }


def fitting(graded: Sequence[Graded], renderer: Any) -> list[Graded]:
    """The prompts that have room for their replies, in their order."""
    return [one for one in graded if renderer.prompt_ids([{"role": "user", "content": one.prompt}]) is not None]


def trainer_of(
    way: str, model: Any, tokenizer: Any, train: list, validation: list, test: list, size: Size, seed: int, folder: Path
) -> Any:
    """A trainer, and the list that gets (z of the held-out pairs, rows of the tested ones, loss) at every epoch's end."""
    import torch
    from transformers import TrainerCallback, TrainingArguments

    from mmpo.train.model import add_lora, multiplies_bfloat16
    from mmpo.train.training import PolicyTrainer, RewardTrainer

    found: list[tuple[np.ndarray, list[int], float]] = []
    cuda, pairs = torch.cuda.is_available(), sum(len(prompt.rows) for prompt in train)
    a_step = max(4, pairs // STEPS_OF_EPOCH)
    args = TrainingArguments(
        output_dir=str(folder), learning_rate=RATES[way], num_train_epochs=size.epochs, lr_scheduler_type="constant_with_warmup",
        warmup_steps=2, optim="adamw_torch", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=not cuda,
        remove_unused_columns=False, seed=seed, bf16=cuda or multiplies_bfloat16(),
    )  # fmt: skip

    class AtEpochs(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not ends or state.global_step != ends[0] or "loss" not in (logs or {}):
                return
            ends.pop(0)
            values = trainer.predict_pairs(trainer.eval_prompts)
            losses = [log["loss"] for log in state.log_history if "loss" in log]
            found.append((values["z"], (values["rows"][-tested:].astype(int) - shift).tolist(), float(np.mean(losses[-an_epoch:]))))

    # Rows number the pairs of each split anew: those of the tested prompts come behind.
    shift = 1 + max(int(prompt.rows.max()) for prompt in validation)
    moved = [*validation, *(replace(prompt, rows=prompt.rows + shift) for prompt in test)]
    tested = sum(len(prompt.rows) for prompt in test)
    if way == "lora":
        model = add_lora(model, LORA_RANK, "reward")
    more: dict[str, Any] = {"processing_class": tokenizer, "gamma": 1.0, "pairs_per_step": a_step, "callbacks": [AtEpochs()]}
    with quiet():
        if way == "policy":
            trainer: Any = PolicyTrainer(model, args, train, moved, reference_cache=str(folder / "reference"), beta=0.1, **more)
        else:
            trainer = RewardTrainer(model, args, train, moved, **more)
    steps = len(trainer.plan())
    an_epoch = steps // size.epochs
    ends = [an_epoch * (epoch + 1) for epoch in range(size.epochs)]
    return trainer, found


def measures(validation: np.ndarray, z: np.ndarray, votes: Sequence[Vote]) -> dict[str, Any]:
    """Of the tested pairs, all of them decided; the temperature is that of the validation pairs."""
    ones, warm = np.ones(len(z)), temperature_fit(validation, np.ones(len(validation)), doubt=0) or 1.0
    found: dict[str, Any] = {"temperature": warm, "accuracy": accuracy(z)}
    for name, logits in (("", z), ("_scaled", z / warm)):
        found |= {f"nll{name}": cross_entropy(logits, ones), f"ece{name}": ece_label(sigmoid(logits))}
    found["validation_nll_scaled"] = cross_entropy(validation / warm, np.ones(len(validation)))
    prefer, of = np.array(votes).T
    voted = of > 0
    if voted.any():
        found["vote_accuracy"] = float(((z > 0) == (2 * prefer > of))[voted].mean())
        found["vote_ece"] = ece_vote(sigmoid(z / warm), prefer, of)
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """The Trainer prints its logs on standard output and its warnings on standard error."""
    import transformers

    transformers.logging.set_verbosity_error()
    with open(os.devnull, "w") as nowhere:
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


# --- differences ------------------------------------------------------------------------------------------------------------------


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """MMPO minus each control by set and way, at each objective's best epoch and at the last: means and standard errors over seeds."""
    found = []
    keys = list(dict.fromkeys((row["set"], row["way"]) for row in rows))
    for name, way in keys:
        own = [row for row in rows if (row["set"], row["way"]) == (name, way)]
        for at in ("best", "last"):
            values = {objective: rows_at(own, objective, at) for objective in dict.fromkeys(row["objective"] for row in own)}
            for mean in (mean for mean in MEANS if f"mmpo@{mean}" in values):
                for control in ("bt", f"matched@{mean}", f"shuffled@{mean}"):
                    mine, theirs = values[f"mmpo@{mean}"], values[control]
                    differences = {}
                    for measure in MEASURES:
                        pairs = [(a.get(measure), b.get(measure)) for a, b in zip(mine, theirs, strict=True)]
                        gaps = np.array([a - b for a, b in pairs if a is not None and b is not None])
                        if len(gaps):
                            error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None
                            differences[measure] = [float(gaps.mean()), error]
                    found.append({"set": name, "way": way, "epoch": at, "mmpo": mean, "minus": control, "differences": differences})
    return found


def rows_at(rows: Sequence[dict[str, Any]], objective: str, at: str) -> list[dict[str, Any]]:
    """Of every seed the row at the epoch that is asked for."""
    found = []
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if (row["objective"], row["seed"]) == (objective, seed)]
        found.append(own[-1] if at == "last" else min(own, key=lambda row: row["validation_nll_scaled"]))
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tens of seconds: a few prompts, one seed")
    parser.add_argument("--set", action="append", choices=list(SETS), help="this set only; may be given again")
    parser.add_argument("--way", action="append", choices=list(SIZES), help="this way to train only; may be given again")
    parser.add_argument("--seeds", type=int, help="seeds (5 and 3; 1 with --quick)")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="N times as many prompts, for a GPU (1)")
    parser.add_argument("--out", type=Path, help="file for everything as JSON")
    parser.add_argument("--json", action="store_true", help="print the differences as the last line")
    options = parser.parse_args()
    if not available():
        sys.exit("claims_pretrained needs models/smollm2 (make models) and the folder of graded sets in MMPO_REAL_DATA")
    found = run(options.quick, options.set or (), options.way or (), options.seeds, options.out, options.times)
    for row in found["compared"]:
        gaps = row["differences"]
        said = ", ".join(f"{name} {value:+.3f} ± {error or math.nan:.3f}" for name, (value, error) in gaps.items())
        print(f"{row['set']} {row['way']} {row['epoch']}: mmpo@{row['mmpo']} − {row['minus']}: {said}")
    print(f"{found['cpu_seconds']:.0f} CPU s", file=sys.stderr)
    if options.json:
        print(
            json.dumps(
                {
                    "ratios": {
                        f"{r['set']}:{r['way']}:{r['epoch']}:{r['mmpo']}-{r['minus']}": r["differences"] for r in found["compared"]
                    }
                }
            )
        )


if __name__ == "__main__":
    main()
