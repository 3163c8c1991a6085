"""How the files of this folder were made, by version 0.1.0 of mmpo: run it with that version installed, in an empty folder.

    python make_v1.py

Only commands are used, so that the script says what a user would have done. The judge is the test server that
version 0.1.0 had beside its tests (tests/annotate/openai_server.py), found through the variable MMPO_V1_TESTS.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

CODE = "from mmpo.cli.main import main; main()"
TRAINING = shlex.split(
    "--model base --loss mmpo --gamma auto --pairs-per-step 6 --epochs 4 --save-steps 2 --logging-steps 1 --eval-steps 4 "
    "--learning-rate 0.01 --max-length 128 --max-prompt-length 64 --seed 3"
)
"""Of both runs; tests/test_golden.py gives the same."""


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", CODE, *words]


def mmpo(*words: str) -> None:
    subprocess.run(command(*words), check=True)


def write_inputs() -> None:
    """Twelve prompts with three candidates; two raters grade every candidate, with ties, halves and an absent grade."""
    with open("grades.jsonl", "w", encoding="utf-8") as file:
        for i in range(12):
            for j in range(3):
                for rater in ("anna", "ben"):
                    if (i, j, rater) == (3, 1, "ben"):
                        continue
                    score = 1 + (3 * i + 2 * j + (i % 4 == 0) * (rater == "ben")) % 5 + (0.5 if (i + j) % 3 == 0 else 0)
                    row = {"prompt": f"Question {i}: what is {i} and {i}?", "completion": f"Answer {j}: it is {i + i + j}."}
                    file.write(json.dumps({**row, "score": min(score, 5.0), "rater": rater, "model": f"model-{j}"}) + "\n")


def write_base() -> None:
    """A tiny Llama and its tokenizer in a folder."""
    from mmpo.train.tiny import tiny_model, tiny_tokenizer  # where version 0.1.0 has them

    texts = [
        line["prompt"] + " " + line["completion"] for line in map(json.loads, Path("grades.jsonl").read_text("utf-8").splitlines())
    ]
    tokenizer = tiny_tokenizer(texts, 320)
    tiny_model("policy", tokenizer, size=16, layers=1, seed=5).save_pretrained("base")
    tokenizer.save_pretrained("base")


def train_and_kill() -> None:
    """A policy's run that is killed once its fourth step is in a checkpoint."""
    words = command(
        "train", "policy", "--data", "pairs", "--out", "policy", "--reference-cache", "cache", "--beta", "0.1", *TRAINING
    )
    process = subprocess.Popen(words)
    while not Path("policy/checkpoint-4/trainer_state.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def main() -> None:
    write_inputs()
    columns = ["--format", "jsonl", "--scale", "1:5"]
    mmpo("build", "grades.jsonl", *columns, "--feedback-only", "--out", "feedback")
    mmpo("build", "grades.jsonl", *columns, "--split", ".7,.3,0", "--out", "pairs")
    sys.path.insert(0, os.environ["MMPO_V1_TESTS"])
    from openai_server import serving

    with serving() as server:
        mmpo("judge", "feedback", "--mode", "pairwise", "--model", "judge-a", "--base-url", server.base_url, "--out", "judged")
    write_base()
    mmpo("train", "reward", "--data", "pairs", "--out", "reward", *TRAINING)
    train_and_kill()


if __name__ == "__main__":
    main()
