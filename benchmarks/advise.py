"""Is advice to be had in a minute, and is it right where the answer is planted?

    python benchmarks/advise.py [--part speed|features|planted|normalisation] [--quick] [--json]

speed: CPU seconds of all objectives on 17,503 pairs of arena grades (data/arena_grades.jsonl.gz), features given, 5 seeds; the aim is 60.
features: CPU seconds of an encoder's features (models/minilm, by `make models`) of every eighth of those completions, in float32 and as by
default, against a plain loop of transformers over padded batches of 32 in the order of the data; interleaved, three runs. The aim: no
dearer.
planted: of ten data sets each how often advice says that margins add accuracy or calibration, at R² .97, at .1 and with shuffled margins.
normalisation: of ten data sets each how often the normalisation that is planted is named. One thread.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support")]

import numpy as np  # noqa: E402
from figures import spread  # noqa: E402
from folders import feedback_folder  # noqa: E402
from planted import planted_rows, planted_table, with_raters  # noqa: E402

from mmpo.pipeline import BuildOptions, build, load_pairs  # noqa: E402
from mmpo.train.advise import advise, bag, evidence_of  # noqa: E402
from mmpo.train.inference import hidden_states  # noqa: E402


def speed(folder: Path, quick: bool) -> dict[str, float]:
    """All that advice does once it has features."""
    build(HERE.parent / "data" / "arena_grades.jsonl.gz", folder / "arena", options=BuildOptions(format="jsonl", scale=(1, 10)))
    table = load_pairs(folder / "arena")
    found, _ = evidence_of(table, "arena")
    values = bag(found)(np.arange(len(found.texts)))
    begun = time.process_time()
    advise(table, values=values, seeds=1 if quick else 5)
    seconds = time.process_time() - begun
    print(f"{table.num_rows:,} pairs, {values.shape[1]} features: {seconds:.1f} CPU s")
    return {"cpu_seconds": seconds}


def features(folder: Path, quick: bool) -> dict[str, float]:
    """What a language model or encoder costs."""
    model = HERE.parent / "models" / "minilm"
    if not (model / "config.json").is_file():
        print(f"features: left out, {model} is not there (make models)")
        return {}
    import torch
    from transformers import AutoModel, AutoTokenizer

    build(HERE.parent / "data" / "arena_grades.jsonl.gz", folder / "arena", options=BuildOptions(format="jsonl", scale=(1, 10)))
    found, _ = evidence_of(load_pairs(folder / "arena"), "arena")
    chosen = range(0, len(found.texts), 40 if quick else 8)
    texts, prompts = [found.texts[i] for i in chosen], found.prompt_of[list(chosen)]

    def ours(bf16: bool | None) -> None:
        hidden_states(found.prompts, texts, prompts, str(model), max_length=512, bf16=bf16, cache=False)

    def padded() -> None:
        reader, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
        reader.model_max_length = 512
        reader.backend_tokenizer.no_padding()
        reader.backend_tokenizer.no_truncation()
        whole = [found.prompts[prompt][-1]["content"] + "\n" + text for prompt, text in zip(prompts, texts, strict=True)]
        with torch.inference_mode():
            for start in range(0, len(whole), 32):
                batch = reader(whole[start : start + 32], padding=True, truncation=True, max_length=512, return_tensors="pt")
                mask = batch["attention_mask"][:, :, None]
                (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    sides = {"float32": lambda: ours(False), "default": lambda: ours(None), "padded": padded}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 if quick else 3):
        for name, run in sides.items():
            begun = time.process_time()
            run()
            spent[name].append(time.process_time() - begun)
    for name, seconds in spent.items():
        print(f"features of {len(texts)} completions, {name}: {spread(seconds, 1)} CPU s")
    return {
        f"{name}_of_padded": statistics.median(a / b for a, b in zip(spent[name], spent["padded"], strict=True))
        for name in ("float32", "default")
    }


def planted(folder: Path, quick: bool) -> dict[str, float]:
    """Data sets with 120 known features."""
    ratios = {}
    for name, share in (("explained", 0.97), ("noise", 0.1), ("shuffled", 0.97)):
        said = []
        for seed in range(2 if quick else 10):
            table, values = planted_table(share, seed, folder / f"{name}-{seed}", shuffled=name == "shuffled")
            said.append(any(value is True for value in advise(table, values=values)["margins_add"].values()))
        print(f"{name}, R² {share}: margins add accuracy or calibration in {sum(said)} of {len(said)} data sets")
        ratios[f"add_{name}"] = sum(said) / len(said)
    return ratios


def normalisation(folder: Path, quick: bool) -> dict[str, float]:
    """Raters of one scale, of two, and shifted ones."""
    ratios = {}
    for how, right in (("same", "none"), ("scales", "zscore"), ("shifted", "zscore")):
        named = []
        for seed in range(2 if quick else 10):
            rows = with_raters(planted_rows(0.7, seed=seed, prompts=120)[0], how, seed)
            named.append(advise(feedback_folder(folder / f"{how}-{seed}", rows))["recommended"]["normalise"] == right)
        print(f"{how}: {right} is named in {sum(named)} of {len(named)} data sets")
        ratios[f"named_{how}"] = sum(named) / len(named)
    return ratios


PARTS = {"speed": speed, "features": features, "planted": planted, "normalisation": normalisation}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="this part only; may be given again (all)")
    parser.add_argument("--quick", action="store_true", help="about a minute: one seed, two data sets")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.part or PARTS:
            ratios |= PARTS[name](Path(folder), options.quick)
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
