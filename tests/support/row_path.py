"""Which modules and classes of ours one row passes on its way from a file to a training loss.

    python row_path.py FOLDER ROWS OUT.json

builds pairs from ROWS lines of UltraFeedback, trains a reward model on them for one step, and writes for every function of ours how
often it was called, the sizes of what it was given and returned, and which classes of ours that was. A function handles the row where
one row more changes how often it is called, or the size of something that it is given or returns: set-up (options, loading, checks
of the model) is the same for one row and for two. `row_path` compares the two runs.
"""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["row_path"]

FOLDERS = ("pipeline", "annotate", "train", "cli")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
COLOURS = (("red", 8), ("blue", 6), ("green", 4), ("black", 2))


def row(number: int) -> dict[str, Any]:
    """A line of UltraFeedback; every number gives one of the same length, so that no longest row changes."""
    completions = []
    for colour, score in COLOURS:
        grades = {aspect: {"Rating": str(score // 2), "Rationale": "So it is."} for aspect in ASPECTS}
        reply = {"model": colour, "response": f"It is {colour} {number}.", "overall_score": float(score), "annotations": grades}
        completions.append(
            {**reply, "principle": "helpfulness", "custom_system_prompt": "", "critique": "", "fine-grained_score": score / 2}
        )
    return {
        "source": "evol_instruct", "instruction": f"Name colour {number}.", "models": [colour for colour, _ in COLOURS],
        "completions": completions, "correct_answers": ["None"], "incorrect_answers": ["None"],
    }  # fmt: skip


def _size(value: Any) -> str:
    """What one more row would change: lengths, shapes, rows."""
    try:
        if hasattr(value, "shape"):
            return str(tuple(value.shape))
        return str(value.num_rows if hasattr(value, "num_rows") else len(value))
    except (TypeError, AttributeError):  # it has none, or is not made yet
        return ""


class Recorder:
    """Notes every call of a function in the folders: count, sizes and classes of ours given and returned."""

    def __init__(self, root: Path) -> None:
        self.root = str(root) + os.sep
        self.calls: Counter[str] = Counter()
        self.sizes: dict[str, Counter[str]] = {}
        self.classes: dict[str, set[str]] = {}
        self.instances: dict[str, set[int]] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(self.root) or code.co_name == "<module>":
            return
        place = code.co_filename[len(self.root) :]
        if place.split(os.sep)[0] not in FOLDERS or ".venv" in place:
            return
        name = f"{place}:{code.co_qualname}"
        if event == "return":
            self._note(name, "return", argument)
            return
        self.calls[name] += 1
        for key in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            self._note(name, key, frame.f_locals.get(key))

    def _note(self, name: str, key: str, value: Any) -> None:
        sizes = self.sizes.setdefault(name, Counter())
        sizes[f"{key} {_size(value)}"] += 1
        if type(value).__module__.startswith("mmpo."):
            inside = value._asdict() if hasattr(value, "_asdict") else getattr(value, "__dict__", {})
            held = ",".join(f"{field} {_size(item)}" for field, item in inside.items())
            sizes[f"{key} ({held})"] += 1
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            self.classes.setdefault(kind, set()).add(held)
            self.instances.setdefault(kind, set()).add(id(value))


def main(folder: Path, rows: int, out: Path) -> None:
    """Build and train with the recorder on."""
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    import mmpo.pipeline
    from mmpo.pipeline import BuildOptions, build
    from mmpo.train import TrainOptions, train_reward

    model = Path(__file__).resolve().parent.parent / "golden" / "v1" / "base"
    folder.mkdir(parents=True)
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row(number)) + "\n" for number in range(1, rows + 1)), encoding="utf-8")
    recorder = Recorder(Path(mmpo.pipeline.__file__).resolve().parent.parent)
    sys.setprofile(recorder)
    threading.setprofile(recorder)
    build(source, folder / "pairs", options=BuildOptions(format="ultrafeedback", split=(1, 0, 0)))
    options = {"max_steps": 1, "eval_split": None, "learning_rate": 1e-3}
    train_reward(TrainOptions(kind="reward", data=str(folder / "pairs"), model=str(model), out=str(folder / "model"), **options))
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]
    classes = {kind: [len(recorder.instances[kind]), *sorted(held)] for kind, held in recorder.classes.items()}
    out.write_text(json.dumps({"calls": recorder.calls, "sizes": recorder.sizes, "classes": classes}), encoding="utf-8")


def row_path(folder: Path) -> dict[str, list[str]]:
    """{"executed": modules with any function called, "files": those with one that handles the row, "classes": classes of ours that hold
    it}, each sorted.
    """
    runs = []
    for rows in (1, 2):
        out = folder / f"{rows}.json"
        command = [sys.executable, str(Path(__file__).resolve()), str(folder / f"run-{rows}"), str(rows), str(out)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        runs.append(json.loads(out.read_text(encoding="utf-8")))
    one, two = runs
    names = set(one["calls"]) | set(two["calls"])
    handling = {n for n in names if one["calls"].get(n) != two["calls"].get(n) or one["sizes"].get(n) != two["sizes"].get(n)}
    kinds = {**one["classes"], **two["classes"]}
    classes = {kind for kind in kinds if one["classes"].get(kind) != two["classes"].get(kind)}
    return {
        "executed": sorted({name.split(":")[0] for name in names}),
        "files": sorted({name.split(":")[0] for name in handling}),
        "classes": sorted(classes),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
