"""How fast are near-duplicates found, how many, and how many wrongly, beside a plain loop over datasketch and datatrove's MinHash pipeline?

    python benchmarks/near_duplicates.py [--quick] [--json] [--runs 5] [--environment DIR]

Texts: replies of AlpacaEval's models from alpaca_eval2_pref.parquet in the folder that MMPO_REAL_DATA names, else made-up ones; and for one
in five of them a copy in which some words are replaced. Each side drops what has a Jaccard similarity of .8 or more by runs of five words:

- mmpo: what `mmpo build --duplicates prompts` does, on a table in memory
- datasketch: the loop of its documentation, one `update` a shingle, then query and insert into MinHashLSH
- datasketch-batch: the same with one `update_batch` a text
- datatrove: signatures, buckets, clusters and filter with its defaults (14 bands of 8), words by spaCy as it does for English
- datatrove-split: the same with words by str.split

The truth is the exact similarity of all texts that share any shingle, by words of letters and digits in small letters, which are also those
that the loops over datasketch take; others cut texts into words in ways of their own, so that a pair near .8 may be above it for one and
below it for another. Recall: of the pairs of texts that are alike, the share of which not both are kept; precision: of the dropped texts,
the share that is alike to some other; both at .8, and in brackets recall of pairs from .85 and precision where .75 will do.
Below the table the same of mmpo by its own words.
Every side runs in a process of its own, turn by turn, on one core; seconds are CPU seconds without reading the texts. datasketch and
datatrove are installed into an environment of their own, which is made where DIR has none (a folder that is thrown away, unless named).
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from figures import spread

SIMILARITY, MARGIN, WORDS = 0.8, 0.05, 5
PACKAGES = ["datasketch==2.0.0", "datatrove[processing]==0.10.1", "spacy==3.8.18", "orjson==3.13.0"]
HEAD = """
import json, re, sys, time
texts = json.load(open(sys.argv[1]))
"""
TAIL = "print(json.dumps({'seconds': time.process_time() - start, 'kept': kept}))"
OURS = f"""{HEAD}
import numpy as np, pyarrow as pa
from mmpo.pipeline.filters import compared, duplicates, texts_of_prompts
ids = [f"{{place:032x}}" for place in range(len(texts))]
table = pa.table({{
    "prompt_id": ids, "prompt": [[{{"role": "user", "content": text}}] for text in texts], "tools": pa.nulls(len(ids), pa.large_string())
}})
start = time.process_time()
slices = [table.slice(low, 4096) for low in range(0, len(ids), 4096)]
parts = [compared(one["prompt_id"], texts_of_prompts(one), np.zeros(len(one), dtype=np.int8), .8, 5) for one in slices]
out = {{low * 4096 + one.row for low, found in enumerate(duplicates(parts, .8)) for one in found}}
kept = [place for place in range(len(ids)) if place not in out]
{TAIL}
"""
SHINGLES = """
def shingles(text):
    words = re.findall(r"\\w+", text.lower())
    return {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
"""
LOOP = f"""{HEAD}{SHINGLES}
from datasketch import MinHash, MinHashLSH
start = time.process_time()
index, kept = MinHashLSH(threshold=.8, num_perm=128), []
for place, text in enumerate(texts):
    signature = MinHash(num_perm=128)
    UPDATE
    if not index.query(signature):
        index.insert(place, signature)
        kept.append(place)
{TAIL}
"""
ONE_BY_ONE = """for shingle in shingles(text):
        signature.update(shingle.encode())"""
TROVE = f"""{HEAD}
import tempfile
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

class Split(WordTokenizer):
    def word_tokenize(self, text): return text.split()
    def sent_tokenize(self, text): return [text]
    def span_tokenize(self, text): return [(0, len(text))]

with tempfile.TemporaryDirectory() as work:
    config = MinhashConfig()
    language = LANGUAGE
    language.word_tokenize("so that it is loaded") if isinstance(language, WordTokenizer) else None
    docs = lambda *_, **__: (Document(text=text, id=str(place)) for place, text in enumerate(texts))
    kept = []
    def collect(data, rank=0, world_size=1):
        for doc in data:
            kept.append(int(doc.id))
            yield doc
    start = time.process_time()
    for number, (steps, tasks) in enumerate([
        ([docs, MinhashDedupSignature(f"{{work}}/signatures", config=config, language=language)], 1),
        ([MinhashDedupBuckets(f"{{work}}/signatures", f"{{work}}/buckets", config=config)], config.num_buckets),
        ([MinhashDedupCluster(f"{{work}}/buckets", f"{{work}}/remove", config=config)], 1),
        ([docs, MinhashDedupFilter(f"{{work}}/remove"), collect], 1),
    ]):
        LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=1, logging_dir=f"{{work}}/logs{{number}}").run()
    kept.sort()
    {TAIL}
"""
SIDES = {
    "mmpo": OURS,
    "datasketch": LOOP.replace("UPDATE", ONE_BY_ONE),
    "datasketch-batch": LOOP.replace("UPDATE", "signature.update_batch([shingle.encode() for shingle in shingles(text)])"),
    "datatrove": TROVE.replace("LANGUAGE", '"eng"'),
    "datatrove-split": TROVE.replace("LANGUAGE", "Split()"),
}


def real(folder: Path, count: int) -> list[str]:
    """Distinct replies of AlpacaEval's models."""
    column = pq.read_table(folder / "alpaca_eval2_pref.parquet", columns=["response"])["response"].to_pylist()
    distinct = list(dict.fromkeys(text for text in column if text and text.strip()))
    return random.Random(0).sample(distinct, min(count, len(distinct)))


def made_up(count: int) -> list[str]:
    """Texts of about the same lengths, of words as unequally frequent as those of a language."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (place + 5) for place in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=int(draw.lognormvariate(4.9, 0.7)) + 1)) for _ in range(count)]


def with_copies(texts: list[str]) -> list[str]:
    """The texts and, of one in five, a copy in which up to a tenth of the words are replaced, in an order of chance."""
    draw = random.Random(1)
    found = list(texts)
    for text in texts[::5]:
        words = text.split(" ")
        for _ in range(round(len(words) * draw.uniform(0, 0.1))):
            words[draw.randrange(len(words))] = "other" + str(draw.randrange(1000))
        found.append(" ".join(words))
    draw.shuffle(found)
    return found


def plain_words(text: str) -> list[str]:
    """Words of letters and digits in small letters."""
    return re.findall(r"\w+", text.lower())


def truth(texts: list[str], words_of: Callable[[str], list[str]]) -> dict[tuple[int, int], float]:
    """The pairs of texts whose exact similarity is at least a little below SIMILARITY, with it, by an index of all shingles."""
    holders: defaultdict[str, list[int]] = defaultdict(list)
    sizes: list[int] = []
    pairs: dict[tuple[int, int], float] = {}
    for place, text in enumerate(texts):
        words = words_of(text)
        own = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))} if words else set()
        common: defaultdict[int, int] = defaultdict(int)
        for shingle in own:
            for other in holders[shingle]:
                common[other] += 1
            holders[shingle].append(place)
        sizes.append(len(own))
        alike = {(other, place): n / (sizes[other] + len(own) - n) for other, n in common.items()}
        pairs |= {pair: value for pair, value in alike.items() if value >= SIMILARITY - MARGIN}
    return pairs


def in_our_words(texts: list[str]) -> list[str]:
    """The texts as the words that `mmpo build` compares, with spaces between them."""
    from mmpo.pipeline.filters.words import words_of

    words = words_of(pa.array(texts))
    return [words.text(low, high - low) for low, high in zip(words.offsets.tolist(), words.offsets[1:].tolist())]


def quality(kept: list[int], pairs: dict[tuple[int, int], float], count: int) -> dict[str, float]:
    """Recall and precision at SIMILARITY; recall of what is alike by MARGIN more, and precision where MARGIN less will do; how many texts
    were dropped."""
    stay = set(kept)
    dropped = set(range(count)) - stay

    def recall(least: float) -> float:
        alike = [pair for pair, value in pairs.items() if value >= least]
        return 1 - sum(one in stay and other in stay for one, other in alike) / len(alike)

    def precision(least: float) -> float:
        return len(dropped & {place for pair, value in pairs.items() if value >= least for place in pair}) / max(len(dropped), 1)

    return {
        "recall": recall(SIMILARITY), "clear_recall": recall(SIMILARITY + MARGIN), "precision": precision(SIMILARITY),
        "clear_precision": precision(SIMILARITY - MARGIN), "dropped": len(dropped),
    }  # fmt: skip


def environment(folder: Path) -> str:
    """The Python of an environment with PACKAGES, which is made where there is none."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    have = subprocess.run([python, "-c", "import datasketch, datatrove, spacy, loguru"], capture_output=True, check=False)
    if have.returncode:
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES], check=True, stdout=sys.stderr
        )
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: 2,000 texts, three runs")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    parser.add_argument("--runs", type=int, help="runs of each side (5; 3 with --quick)")
    parser.add_argument(
        "--environment", type=Path, help="where datasketch and datatrove are installed (a folder that is thrown away)"
    )
    options = parser.parse_args()
    folder, count = Path(os.environ.get("MMPO_REAL_DATA", "/nowhere")), 2_000 if options.quick else 10_000
    is_real = (folder / "alpaca_eval2_pref.parquet").is_file()
    texts = with_copies(real(folder, count) if is_real else made_up(count))
    pairs, runs = truth(texts, plain_words), options.runs or (3 if options.quick else 5)
    characters = sum(map(len, texts)) / len(texts)
    alike = sum(value >= SIMILARITY for value in pairs.values())
    print(
        f"{len(texts):,} {'replies' if is_real else 'made-up texts'} of {characters:.0f} characters on average, {alike:,} pairs of them "
        f"alike; {runs} runs of each in turn; median (min - max)"
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "texts.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        other = environment(options.environment or Path(scratch) / "environment")
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        kept: dict[str, list[int]] = {}
        alone = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        for _ in range(runs):
            for side, code in SIDES.items():
                python = sys.executable if side == "mmpo" else other
                done = subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True, check=False, env=alone)
                if done.returncode:
                    raise SystemExit(f"{side}: {done.stderr[-2000:]}")
                found = json.loads(done.stdout.splitlines()[-1])
                seconds[side].append(found["seconds"])
                kept[side] = found["kept"]
    ratios: dict[str, float] = {}
    own = quality(kept["mmpo"], truth(in_our_words(texts), str.split), len(texts))
    print(f"{'':<17} {'CPU seconds':<21} texts a second  recall           precision        dropped")
    for side, times in seconds.items():
        found = quality(kept[side], pairs, len(texts))
        rate, told = (
            len(texts) / statistics.median(times),
            (f"{found[n]:.4f} ({found[f'clear_{n}']:.4f})" for n in ("recall", "precision")),
        )
        print(f"{side:<17} {spread(times):<21} {rate:>14,.0f}  {'  '.join(told)}  {found['dropped']:>7,}")
        if side == "mmpo":
            ratios |= {name: own[name] for name in ("recall", "precision")}
        else:
            each = [theirs / ours for ours, theirs in zip(seconds["mmpo"], times, strict=True)]
            ratios[f"vs_{side.replace('-', '_')}"] = statistics.median(each)
    print(f"mmpo by the words that it takes itself: recall {own['recall']:.4f}, precision {own['precision']:.4f}")
    for name, value in ratios.items():
        if name.startswith("vs_"):
            print(f"{name.removeprefix('vs_').replace('_', '-')} / mmpo: {value:.1f}")
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
