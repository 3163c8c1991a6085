"""How long does a training run take, and how much memory, before its first step?

    python benchmarks/start.py [--quick] [--json] [--runs 3] [--prompts 61000] [--beside FOLDER]

Prompts with four completions each, all six pairs of each, of UltraFeedback's lengths (train_data.py) in words of English, built by
`mmpo build`; a reward model with a real tokenizer (SmolLM2's, from models/, with its chat template; `make models` fetches it) and next to
no weights of its own. Each run is a process of its own, ends where its first step would begin, and says CPU seconds, seconds and the
largest resident set. `first` starts on a dataset of which nothing was kept, `again` on one that a run has started on before; `bare` does
the least that a run can do: it reads every text once, renders prompt and reply together with the chat template, and tokenises what comes of
it in one batch per thousand. --beside: the same of another checkout of mmpo, turn by turn.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import spread
from train_data import make_data

ROOT = Path(__file__).resolve().parent.parent
HEAD = """
import json, os, resource, sys, time
began = time.time()
from pathlib import Path
def say():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024
    print(json.dumps({"cpu": sum(u.ru_utime + u.ru_stime for u in used), "wall": time.time() - began, "mib": peak}), flush=True)
    os._exit(0)
"""
OURS = f"""{HEAD}
from transformers import TrainerCallback
from mmpo.train import TrainOptions, train_reward
class Began(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        say()
data, model, out = sys.argv[1:]
train_reward(TrainOptions(kind="reward", data=data, model=model, out=out, max_length=1024, max_prompt_length=512), [Began()])
"""
BARE = f"""{HEAD}
import pyarrow.parquet as pq
from transformers import AutoTokenizer
data, model, out = sys.argv[1:]
tokenizer, tokens = AutoTokenizer.from_pretrained(model), 0
seen, texts = set(), []
def rendered():
    global tokens
    tokens += sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else 0
    texts.clear()
for path in sorted(Path(data, "train").glob("*.parquet")):
    for batch in pq.ParquetFile(path).iter_batches(1024, columns=["prompt", "chosen", "rejected", "chosen_id", "rejected_id"]):
        for side in ("chosen", "rejected"):
            for row, name in enumerate(batch[side + "_id"].to_pylist()):
                if name not in seen:
                    seen.add(name)
                    messages = batch["prompt"][row].as_py() + batch[side][row].as_py()
                    plain = [{{"role": m["role"], "content": m["content"]}} for m in messages]
                    texts.append(tokenizer.apply_chat_template(plain, tokenize=False))
        if len(texts) > 1000:
            rendered()
rendered()
say()
"""


def make_dataset(folder: Path, prompts: int) -> Path:
    """The pairs of so many prompts, built by the command."""
    lengths, draw = make_data(prompts), random.Random(0)
    words = [word for word in (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split() if word.isalpha()]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as out:
        for prompt, replies, grades in zip(lengths.prompt, lengths.completion, lengths.grade, strict=True):
            said = " ".join(draw.choices(words, k=max(2, int(prompt * 0.75))))
            for reply, grade in zip(replies, grades, strict=True):
                text = " ".join(draw.choices(words, k=max(2, int(reply * 0.75))))
                out.write(json.dumps({"prompt": said, "completion": text, "score": float(grade)}) + "\n")
    command = [
        sys.executable,
        "-m",
        "mmpo.cli",
        "build",
        str(folder / "rows.jsonl"),
        "--format",
        "jsonl",
        "--scale",
        "0:3",
        "--split",
        "1,0,0",
    ]
    subprocess.run([*command, "--out", str(folder / "pairs")], check=True, capture_output=True)
    (folder / "rows.jsonl").unlink()
    return folder / "pairs"


def make_model(folder: Path) -> Path:
    """A model of next to no size with SmolLM2's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    if not (ROOT / "models" / "smollm2" / "tokenizer.json").is_file():
        print("nothing measured: models/smollm2 is not there, `make models` fetches it", file=sys.stderr)
        raise SystemExit(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "smollm2")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        pad_token_id=tokenizer.eos_token_id, max_position_embeddings=2048,
    )  # fmt: skip
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def run(code: str, data: Path, model: Path, out: Path, checkout: Path) -> dict[str, float]:
    """One start in a process of its own."""
    python = checkout / ".venv" / "bin" / "python"
    line = [str(python if python.exists() else sys.executable), "-c", code, str(data), str(model), str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "0"})
    if done.returncode:
        raise SystemExit(done.stderr)
    shutil.rmtree(out, ignore_errors=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=61_000)
    parser.add_argument("--beside", type=Path, help="another checkout, with its .venv")
    options = parser.parse_args()
    prompts, runs = (200, 1) if options.quick else (options.prompts, options.runs)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, model = make_dataset(folder, prompts), make_model(folder)
        for _ in range(runs):
            shutil.rmtree(f"{data}.tokens", ignore_errors=True)
            for name, code in (("first", OURS), ("again", OURS), ("bare", BARE)):
                found.setdefault(name, []).append(run(code, data, model, folder / "out", ROOT))
            if options.beside:
                found.setdefault("beside", []).append(run(OURS, data, model, folder / "out", options.beside))
    if options.json:
        print(json.dumps({"prompts": prompts, **found}))
        return
    print(f"{prompts} prompts, {6 * prompts} pairs; from a process's start to its first step: median (least - most)")
    for name, values in found.items():
        cpu, wall, mib = (spread([one[what] for one in values], digits) for what, digits in (("cpu", 1), ("wall", 1), ("mib", 0)))
        print(f"{name:7} CPU seconds {cpu}  seconds {wall}  MiB {mib}")


if __name__ == "__main__":
    main()
