"""`mmpo doctor`: what is installed and what works, tried out on a tiny dataset. What may be broken is imported while it is tried."""

import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from mmpo.cli.help import QUIET
from mmpo.cli.installed import ADDS, requirements, version_of, versions

GRADES = {"Which is the largest planet?": {"Jupiter.": 5, "Saturn, I think.": 2, "The Moon.": 1}, "2 + 2?": {"4": 5, "5": 1}}
MARGINS = [1.0, 3.0, 4.0, 4.0]
"""The margins of all pairs of these: 2 − 1, 5 − 2, 5 − 1 and 5 − 1."""
KEYS = ("OPENAI_API_KEY", "ARGILLA_API_KEY", "HF_TOKEN")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was found as JSON on standard output.")] = False,
) -> int:
    """Say what is installed, which device there is and what each extra would add; then try mmpo out, in some five seconds.

    The trial builds a dataset of four pairs in a temporary folder and compares their margins with those by hand; where the extra `train` is
    there, it trains a tiny reward model for one step. Exit status 1 where something that is installed is too old or does not work.
    """
    found: dict[str, Any] = {
        **{name: version for name, version in versions().items() if name in ("mmpo", "python")},
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "extras": {extra or "(core)": _extra(extra) for extra in ADDS},
        "keys": {name: name in os.environ for name in KEYS},
    }
    trains = bool(found["extras"]["train"]["installed"]) and not found["extras"]["train"]["missing"]
    found["device"] = device() if trains else None
    with TemporaryDirectory(prefix="mmpo-doctor-") as folder:
        tests: dict[str, Callable[[Path], str]] = {"build a dataset": build_one, **({"train a step": train_one} if trains else {})}
        found["tests"] = [_tried(name, test, Path(folder)) for name, test in tests.items()]
    if not requirements()[""]:
        found["extras"]["(core)"]["unfit"] = ["mmpo's own metadata is missing: it was copied here, not installed"]
    wrong = [one for extra in found["extras"].values() for one in extra["unfit"]]
    found["ok"] = not wrong and all(test["ok"] for test in found["tests"])
    for line in _lines(found):
        if line.startswith(("error", "warning")) or not os.environ.get(QUIET):
            print(line, file=sys.stderr)
    if as_json:
        print(json.dumps(found))
    return 0 if found["ok"] else 1


def _extra(extra: str) -> dict[str, Any]:
    """What of an extra is there, missing, or of a version that mmpo does not take, and how it is installed."""
    wanted = requirements()[extra]
    there = {name: version for name in wanted if (version := version_of(name)) is not None}
    unfit = [
        f"{name} {version} ({wanted[name]} is needed)"
        for name, version in there.items()
        if not import_module("packaging.specifiers").SpecifierSet(wanted[name]).contains(version, prereleases=True)
    ]
    named = f"mmpo[{extra}]" if extra else "mmpo"
    return {
        "adds": ADDS[extra],
        "installed": there,
        "missing": [name for name in wanted if name not in there],
        "unfit": unfit,
        "pip": f"pip install --upgrade '{named}'" if unfit else f"pip install '{named}'",
    }


def device() -> dict[str, Any]:
    """What training would run on, and a note where a GPU is there that torch does not see."""
    try:
        torch = import_module("torch")
    except Exception as error:  # a broken installation raises whatever it likes
        return {"kind": None, "name": "", "note": f"torch cannot be loaded: {_short(error)}"}
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        more = f", the first of {torch.cuda.device_count()}" if torch.cuda.device_count() > 1 else ""
        return {"kind": "cuda", "name": f"{one.name}, {one.total_memory / 2**30:.0f} GiB{more}", "note": ""}
    if torch.backends.mps.is_available():
        return {"kind": "mps", "name": "Apple's GPU", "note": ""}
    unseen = shutil.which("nvidia-smi") is not None
    note = (
        f"an NVIDIA driver is here, but torch {torch.__version__} sees no GPU: install a build of torch for CUDA" if unseen else ""
    )
    return {"kind": "cpu", "name": f"{torch.get_num_threads()} threads", "note": note}


def build_one(folder: Path) -> str:
    """A dataset of four pairs in the folder's `pairs`; what was found. Raises where it is not as it must be."""
    import orjson

    from mmpo.pipeline import BuildOptions, build, load_pairs, validate

    rows = [
        {"prompt": prompt, "completion": text, "score": score} for prompt, texts in GRADES.items() for text, score in texts.items()
    ]
    (folder / "grades.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    build([folder / "grades.jsonl"], folder / "pairs", options=BuildOptions(format="jsonl", split=(1, 0, 0), workers=1))
    margins = sorted(load_pairs(folder / "pairs")["quality_margin"].to_pylist())
    if margins != MARGINS:
        raise AssertionError(f"margins {margins}, by hand {MARGINS}")
    if failed := [check["name"] for check in validate(folder / "pairs")["checks"] if check["status"] == "fail"]:
        raise AssertionError(f"the dataset does not pass: {', '.join(failed)}")
    return "4 pairs, their margins as by hand"


def train_one(folder: Path) -> str:
    """A step of a tiny reward model on these pairs; what was found. Raises where it is not as it must be."""
    from mmpo.train import TrainOptions, train_reward

    if not (folder / "pairs").is_dir():
        raise AssertionError("not tried: there is no dataset")
    summary = train_reward(
        TrainOptions(
            kind="reward", data=folder / "pairs", out=folder / "model", model="tiny", tiny_size=16, tiny_layers=1, tiny_vocab=300,
            max_length=64, max_prompt_length=32, max_steps=1, eval_split=None,
        )
    )  # fmt: skip
    if not math.isfinite(summary["train_loss"]):
        raise AssertionError(f"the loss is {summary['train_loss']}")
    return f"a tiny reward model, loss {summary['train_loss']:.3f}"


def _tried(name: str, test: Callable[[Path], str], folder: Path) -> dict[str, Any]:
    before, began = os.environ.get(QUIET), time.monotonic()
    os.environ[QUIET] = "1"
    try:
        ok, told = True, test(folder)
    except Exception as error:  # whatever does not work here is what was asked for
        ok, told = False, _short(error)
    finally:
        os.environ.pop(QUIET)
        os.environ.update({} if before is None else {QUIET: before})
    return {"name": name, "ok": ok, "seconds": round(time.monotonic() - began, 2), "message": told}


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"mmpo {found['mmpo']}, Python {found['python']}, {found['system']}"]
    for extra, one in found["extras"].items():
        state = "unfit" if one["unfit"] else "missing" if one["missing"] else "installed"
        lines.append(f"  {extra:<9} {state:<10} {one['adds']}")
        if one["missing"] and not one["unfit"]:
            lines.append(f"  {'':<20} {one['pip']}    ({', '.join(one['missing'])})")
    lines += [f"error: {extra}: {', '.join(one['unfit'])}: {one['pip']}" for extra, one in found["extras"].items() if one["unfit"]]
    if found["device"]:
        kind, name, note = found["device"].values()
        lines.append(f"device: {kind or 'unknown'}{', ' * bool(name)}{name}")
        lines += [f"warning: {note}"] * bool(note)
    keys = [name for name, there in found["keys"].items() if there]
    lines.append(f"keys in the environment: {', '.join(keys) or 'none of ' + ', '.join(KEYS)}")
    for test in found["tests"]:
        told = f"{test['name']} ({test['seconds']:.1f} s): {test['message']}"
        lines.append(f"works: {told}" if test["ok"] else f"error: does not work: {told}")
    return [*lines, "all that is installed works" if found["ok"] else "error: the lines above say what does not work"]
