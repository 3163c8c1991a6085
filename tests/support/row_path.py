"""Which modules and classes of ours one row passes on its way, counted by a tracer over two runs: one with one row, one with two.

A function handles the row where one row more changes how often it is called, or the size of something that it is given or returns:
set-up (options, loading, checks of a model) is the same for one row and for two. A class holds the row where there are more objects
of it, or larger ones; what only keeps a list of other objects of ours (a trainer, a run) is no form of its own.
"""

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import mmpo.pipeline

ROOT = str(Path(mmpo.pipeline.__file__).resolve().parent.parent) + os.sep
FOLDERS = ("pipeline", "annotate", "train", "cli")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
COLOURS = (("red", 8), ("blue", 6), ("green", 4), ("black", 2))


def ultrafeedback_row(number: int) -> str:
    """A line of UltraFeedback; every number below 10 gives one of the same length, so that no longest row changes."""
    completions = []
    for colour, score in COLOURS:
        grades = {aspect: {"Rating": str(score // 2), "Rationale": "So it is."} for aspect in ASPECTS}
        reply = {"model": colour, "response": f"It is {colour} {number}.", "overall_score": float(score), "annotations": grades}
        completions.append({**reply, "principle": "helpfulness", "custom_system_prompt": "", "critique": ""})
    head = {"source": "evol_instruct", "instruction": f"Name colour {number}.", "models": [colour for colour, _ in COLOURS]}
    return json.dumps({**head, "completions": completions, "correct_answers": ["None"], "incorrect_answers": ["None"]}) + "\n"


def _size(value: Any) -> str:
    """What one more row would change: lengths, shapes, rows."""
    try:
        if hasattr(value, "shape"):
            return str(tuple(value.shape))
        return str(value.num_rows if hasattr(value, "num_rows") else len(value))
    except (TypeError, AttributeError):  # it has none, or is not made yet
        return ""


def _of_ours(value: Any) -> bool:
    """Whether it is a list or a tuple of objects of ours."""
    return isinstance(value, (list, tuple)) and bool(value) and type(value[0]).__module__.startswith("mmpo.")


class Recorder:
    """Notes every call of a function of ours: how often, the sizes of what it is given and returns, and which objects of ours."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        """Function, and that it was called or the size of something; how often."""
        self.held: set[tuple[str, str]] = set()
        self.objects: dict[int, tuple[str, Any]] = {}
        """By their ids, and kept, for the next object takes the id of one that is gone."""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(ROOT) or code.co_name == "<module>":
            return
        place = code.co_filename[len(ROOT) :]
        if place.split(os.sep)[0] not in FOLDERS:
            return
        name = f"{place}:{code.co_qualname}"
        if event == "return":
            self._note(name, "return", argument)
            return
        self.seen[name, "called"] += 1
        for key in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            self._note(name, key, frame.f_locals.get(key))

    def _note(self, name: str, key: str, value: Any) -> None:
        self.seen[name, f"{key} {_size(value)}"] += 1
        if type(value).__module__.startswith("mmpo."):
            inside = value._asdict() if hasattr(value, "_asdict") else getattr(value, "__dict__", {})
            held = ",".join(f"{field} {_size(item)}" for field, item in inside.items() if not _of_ours(item))
            self.seen[name, f"{key} ({held})"] += 1
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            self.held.add((kind, held))
            self.objects[id(value)] = (kind, value)

    def of_ours(self) -> Counter[str]:
        """How many objects there were of each class."""
        return Counter(kind for kind, _ in self.objects.values())


def _recorded(work: Callable[[int], object], rows: int) -> Recorder:
    recorder = Recorder()
    sys.setprofile(recorder)
    threading.setprofile(recorder)
    try:
        work(rows)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return recorder


def row_path(work: Callable[[int], object]) -> dict[str, list[str]]:
    """What `work` (called with a number of rows) runs: {"executed": modules with any function called, "files": those with one that
    handles the row, "classes": classes of ours that hold it}, each sorted. A first run apart fills what is only computed once.
    """
    work(1)
    one, two = _recorded(work, 1), _recorded(work, 2)
    handling = {name for (name, _), _ in one.seen.items() ^ two.seen.items()}
    classes = {kind for kind, _ in {*(one.held ^ two.held), *(one.of_ours().items() ^ two.of_ours().items())}}
    return {
        "executed": sorted({name.split(":")[0] for name, _ in {*one.seen, *two.seen}}),
        "files": sorted({name.split(":")[0] for name in handling}),
        "classes": sorted(classes),
    }
