"""A loop that takes seconds: prompts, a start model that writes the demo's words, a judge, and people who grade every round."""

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import demo_loop
from folders import pairs_folder
from openai_server import Server

from mmpo.cli.main import run
from mmpo.pipeline import load_feedback
from mmpo.train import TrainOptions, train_policy, train_reward

PROMPTS = [ask.format(topic) for topic in demo_loop.TOPICS[:5] for ask in demo_loop.ASKED]
SIZES = {"tiny_size": 32, "tiny_layers": 1, "tiny_vocab": 600, "max_length": 96, "max_prompt_length": 48, "eval_split": None}
RECIPE = demo_loop.ROOT / "recipes" / "loop.yaml"
SMALL = [
    "generate.n=3",
    "calibrate.bootstrap=20",
    "calibrate.folds=3",
    "calibrate.unproven=keep",
    "evaluate.bootstrap=50",
    "rounds=2",
]
TABLES = ("candidates", "judged", "scored", "feedback", "calibrated", "pairs", "replies", "beside", "held-out")


def start_models(folder: Path) -> Path:
    """A folder with `start`, a policy that writes the demo's words, `reward`, a reward model, and prompts.jsonl."""
    draw = random.Random(0)
    texts = [[demo_loop.sentence(draw) for _ in range(2)] for _ in PROMPTS * 6]
    rows = [{"prompt": p, "chosen": a, "rejected": b, "margin": 1} for p, (a, b) in zip(PROMPTS * 6, texts, strict=True)]
    words = str(pairs_folder(folder / "words", rows, split=(1, 0, 0)))
    rates = {"loss": "sft", "epochs": 8, "learning_rate": 5e-3, "pairs_per_step": 16}
    train_policy(TrainOptions("policy", words, **rates, out=str(folder / "start"), **SIZES))
    train_reward(TrainOptions("reward", words, max_steps=2, out=str(folder / "reward"), **SIZES))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return folder


class Loop:
    """A loop in `out`: the shipped recipe in small, and what the test sets."""

    def __init__(self, models: Path, server: Server, out: Path, *sets: str) -> None:
        self.out, self.server = out, server
        self.people = Path(f"{out}-people")
        own = [f"out={out}", f"generate.prompts=[{models / 'prompts.jsonl'}]", f"training.model={models / 'start'}"]
        own += [f"judge.base_url={server.base_url}", f"calibrate.people=['{self.people}/{{round}}']"]
        self.sets = [*SMALL, *own, *sets]

    @property
    def words(self) -> list[str]:
        """The command."""
        return ["run", str(RECIPE), *(part for value in self.sets for part in ("--set", value))]

    def run(self, places: Sequence[str] = ("round-1", "round-2")) -> list[int]:
        """Run it, with people who grade the rounds of these names as they are asked to; the exit statuses."""
        statuses = [run(self.words)]
        for place in places:
            if statuses[-1] == demo_loop.WAITING:
                grade(self.out / place / "judged", self.people / place)
                statuses.append(run(self.words))
        return statuses

    def rows(self) -> list[dict[str, Any]]:
        """The figures of its policies."""
        return json.loads((self.out / "rounds.json").read_text())["rows"]

    def feedback(self, name: str) -> list[dict[str, Any]]:
        """The rows of a folder of FEEDBACK of it."""
        return load_feedback(self.out / name).to_pylist()


def grade(judged: Path, out: Path) -> None:
    """People's grades of a round, by the demo's people."""
    rows = demo_loop.graded_by_people(judged)
    pairs_folder(out, rows, feedback_only=True, scale=(-3, 3))


def models_in(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Who wrote the candidates of FEEDBACK."""
    return {one["model"] for row in rows for one in row["completions"]}


def made(out: Path) -> Iterator[Path]:
    """The files of a loop that a kill must not change: the parts of its tables, the weights of its models, its figures."""
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        table = path.name.startswith("part-") and any(part in TABLES for part in parts)
        last = not any(part.startswith("checkpoint") for part in parts)
        if table or (last and path.name in ("model.safetensors", "rounds.json")):
            yield path


def environment() -> dict[str, str]:
    """Of a process that runs a loop."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OPENAI_API_KEY": "sk-test"}
