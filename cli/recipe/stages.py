"""Stages of a run that remember what they were made from, so that the same command again does only what is left.

A record per stage lies in OUT/stages/NAME.json: the digest of its configuration and inputs, whether it finished, and
its summary.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from mmpo.cli.output import say
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import ENGINE_OPTIONS
from mmpo.pipeline.storage import atomic_file, digest, plain, text_digest

MARKER = "recipe.json"
WEIGHTS = (".safetensors", ".bin", ".json", ".jinja")
HOW_MADE = ("mmpo.json", "training_args.bin")
"""The kinds of files of a model's folder that make it what it is; and those of these kinds that say how it was made."""


def key_of(values: Mapping[str, Any]) -> str:
    """A digest of JSON values that doesn't depend on the order of their keys.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return text_digest(text)


def without_place(options: Any) -> dict[str, Any]:
    """Options as a stage's key has them: without those that alter nothing that it makes."""
    return {name: value for name, value in asdict(options).items() if name not in ENGINE_OPTIONS}


class Stages:
    """The folder of a run, and of a part of one below it (`below`). Creating one refuses a folder that holds something else."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; name a folder by `out`")
        if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
            raise UserError(f"{out} exists and holds something that no run made; name another folder by --set out=...")
        self.out, self.records, self.name = out, out / "stages", ""
        self.records.mkdir(parents=True, exist_ok=True)
        write_json(out / MARKER, recipe)

    def below(self, name: str) -> "Stages":
        """A part of the run, such as a round: its stages' folders lie in OUT/NAME, their records in OUT/stages/NAME."""
        part = copy(self)
        part.out, part.records, part.name = self.out / name, self.records / name, f"{self.name}{name} "
        part.out.mkdir(parents=True, exist_ok=True)
        part.records.mkdir(parents=True, exist_ok=True)
        return part

    def do(
        self,
        name: str,
        key: Mapping[str, Any],
        work: Callable[[], dict[str, Any]],
        made: Path,
        read: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The summary of stage `name`: from its record if nothing changed and `made` is there, else by doing the work. read: of files that
        the key names, their digests; a record without any, of a version before, says nothing of them.

        A stage that was interrupted with the same key finds its half-done folder again; one whose key changed starts
        afresh.
        """
        digest = key_of(key)
        path = self.records / f"{name}.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        read = dict(read or {})
        same = record.get("key") == digest and record.get("read", read) == read
        if same and record.get("finished") and made.exists():
            say(f"[{self.name}{name}] unchanged since it was made, kept")
            return record["summary"]
        if record and not same and made.is_dir():
            shutil.rmtree(made)
        say(f"[{self.name}{name}]")
        write_json(path, {"key": digest, "read": read, "finished": False})
        summary = work()
        write_json(path, {"key": digest, "read": read, "finished": True, "summary": summary})
        return summary


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    with atomic_file(path) as temporary:
        temporary.write_bytes(orjson.dumps(plain(value), option=options, default=str))


def read_files(*names: Any) -> dict[str, str]:
    """Those of the names that are files, with their digests."""
    return {str(name): digest(name) for name in names if isinstance(name, str | Path) and Path(name).is_file()}


def weights_of(model: str | Path) -> Any:
    """What a stage's key holds of a model that it reads: the digests of a folder's files, of a model elsewhere its name."""
    files = sorted(path for path in Path(model).glob("*") if path.suffix in WEIGHTS and path.name not in HOW_MADE)
    return {path.name: digest(path) for path in files} if Path(model).is_dir() else str(model)
