"""The processes that `train_speed.py` compares, seen from the script: started, told to go on, heard, compared."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from figures import spread
from train_worker import Spec

__all__ = ["BATCH", "Plan", "Side", "interleaved", "spread", "traces"]

HERE = Path(__file__).resolve().parent
BATCH = 8
"""Pairs of one padded batch of TRL, its default."""
SCRIPTS = {"mmpo": "train_ours.py", "bf16": "train_ours.py", "shipped": "train_trl.py", "sorted": "train_trl.py"}


@dataclass(frozen=True)
class Plan:
    """What all measurements share. models: folders by task. runs: of each side. warm: runs before them that don't count. lora: an
    adapter's rank, 0 for none.
    """

    scratch: Path
    models: Mapping[str, Path]
    device: str
    threads: int
    runs: int
    warm: int
    lora: int = 0


@dataclass
class Side:
    """A process; its runs' seconds, pairs, tokens and peak memory in MiB; reference in seconds; loaded: memory with the model alone.

    way: how the side says that it lays its batches out. losses: of all steps of all runs, where they are traced.
    """

    process: subprocess.Popen[str]
    log: Path
    loaded: float = 0.0
    reference: float = 0.0
    way: str = ""
    runs: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def hear(self) -> dict[str, Any]:
        """The next line; RuntimeError with the end of what the process printed if it has ended instead."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.process.args} has ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def tell(self) -> None:
        """Go on."""
        if self.process.stdin:
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def prepare(self) -> None:
        """From loaded to ready to train."""
        self.tell()
        said = self.hear()
        self.loaded, self.reference, self.way = said["loaded"], said["reference"], said["way"]

    def run(self) -> dict[str, float]:
        """One run."""
        self.tell()
        self.runs.append(self.hear())
        return self.runs[-1]

    def rates(self, clock: str = "seconds") -> list[float]:
        """Pairs a second of every run; clock "cpu": a CPU second of the whole process."""
        return [run["pairs"] / run[clock] for run in self.runs]

    def tokens_a_pair(self) -> float:
        """Tokens that went through the model for a pair, over all runs."""
        return sum(run["tokens"] for run in self.runs) / sum(run["pairs"] for run in self.runs)

    def peak(self) -> float:
        """The largest memory while training, in MiB."""
        return max(run["peak"] for run in self.runs)


@contextmanager
def started(plan: Plan, specs: Mapping[str, Spec]) -> Iterator[dict[str, Side]]:
    """The processes of the sides, loaded and waiting; none outlives the block."""
    sides: dict[str, Side] = {}
    try:
        for name, spec in specs.items():
            folder = Path(tempfile.mkdtemp(dir=plan.scratch))
            (folder / "spec.json").write_text(json.dumps({**asdict(spec), "scratch": str(folder)}))
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": str(plan.threads),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            environment |= {"HF_DATASETS_CACHE": str(folder), "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
            with (folder / "log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, str(HERE / SCRIPTS[name]), str(folder / "spec.json")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                )
            sides[name] = Side(process, folder / "log")
        for side in sides.values():
            side.hear()
        yield sides
    finally:
        for side in sides.values():
            side.process.kill()
            side.process.wait()


def spec_of(plan: Plan, task: str, table: pa.Table, **other: Any) -> Spec:
    """A spec with its table written."""
    file, path = tempfile.mkstemp(dir=plan.scratch, suffix=".parquet")
    os.close(file)
    pq.write_table(table, path)
    return Spec(task=task, model=str(plan.models[task]), table=path, scratch="", device=plan.device, lora=plan.lora, **other)


def interleaved(plan: Plan, task: str, tables: Mapping[str, pa.Table], *, pairs_per_step: int, **other: Any) -> dict[str, Side]:
    """Runs the sides in turn, the one that begins changing from turn to turn; the first `plan.warm` runs are forgotten."""
    specs = {
        name: spec_of(
            plan, task, table, epochs=plan.warm + plan.runs, pairs_per_step=pairs_per_step, batch=BATCH, learning_rate=1e-5,
            order="sequential" if name == "sorted" else "random", bf16=name == "bf16", **other,
        )
        for name, table in tables.items()
    }  # fmt: skip
    with started(plan, specs) as sides:
        for side in sides.values():
            side.prepare()
        for turn in range(plan.warm + plan.runs):
            for side in list(sides.values())[:: -1 if turn % 2 else 1]:
                side.run()
        for side in sides.values():
            side.losses = side.hear()["losses"] if other.get("trace") else []
            del side.runs[: plan.warm]
        return sides


def traces(
    plan: Plan, task: str, table: pa.Table, pairs_per_step: int, learning_rate: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours, then TRL on the very pairs of each of our steps: losses, gradient norms, digest of the tokens."""
    rows = plan.scratch / f"{task}-rows.json"
    spec = spec_of(plan, task, table, epochs=1, pairs_per_step=pairs_per_step, batch=BATCH, learning_rate=learning_rate, trace=True)
    with started(plan, {"mmpo": spec, "shipped": replace(spec, follow=str(rows), order="sequential")}) as sides:
        found = []
        for side in sides.values():
            side.prepare()
            side.run()
            found.append(side.hear())
            rows.write_text(json.dumps(found[0]["rows"]))
    if {len(step) for step in found[0]["rows"]} != {pairs_per_step}:
        raise RuntimeError("the steps of a trace must all hold the same number of pairs")
    return found[0], found[1]
