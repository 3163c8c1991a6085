"""`mmpo push` of a model: a folder of `mmpo train` or `mmpo merge` to the Hub in one commit, or nothing of it; no path of this machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.hub.card import marked_page, parts_of_page
from mmpo.pipeline.hub.client import CARD, NAME, hub_api, named
from mmpo.pipeline.hub.push import Pushed, check_license, commit, compare, listed, outcome, read_file, refuse_changed, repository
from mmpo.pipeline.storage import FileDigest, file_digest

RECORD, ADAPTER = "mmpo.json", "adapter_config.json"
PUSHED = "pushed"
"""The key of mmpo.json on the Hub that has the digests of the files that were pushed with it."""
FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", ADAPTER, "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*", "*.py",
)  # fmt: skip
"""What of a folder makes the model; checkpoints, samples, caches and pickled arguments stay here."""
_PATHS = ("data", "model", "out", "reference", "reference_cache")


@dataclass(frozen=True, kw_only=True)
class PushedModel(Pushed):
    """Of a model."""

    model: str


def push_model(
    folder: str | Path,
    name: str,
    *,
    public: bool = False,
    license: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
) -> PushedModel:
    """Push the folder of a run that has ended, or of a merge, to the model OWNER/NAME, which is made, private, where there is none.

    public, license, message, overwrite: as `push_dataset` takes them. Weights, configuration, tokenizer, the card and mmpo.json go, the
    last one without paths of this machine. An adapter goes with its base's name on the Hub. One commit holds all of it and takes away what
    an earlier push left. Raises UserError, also for an adapter whose base has no name there, and PartialResult as `push_dataset` does.
    """
    path, (name, _) = Path(folder), named(name, revision=False, kind="model")
    check_license(license)
    record = _record(path)
    files: dict[str, Path | bytes] = {
        one.name: one for one in sorted(path.iterdir()) if one.is_file() and any(fnmatch(one.name, pattern) for pattern in FILES)
    }
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(f"{path} holds no weights (*.safetensors): the folder is not whole, and nothing was pushed")
    if ADAPTER in files:
        files[ADAPTER] = _adapter(path, record)
    digests: dict[str, FileDigest | None] = {file: file_digest(where) for file, where in files.items() if isinstance(where, Path)}
    told = {**_without_paths(record), PUSHED: digests}
    files[RECORD] = (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()
    api = hub_api()
    info = repository(api, name, public, "model")
    names = {one.rfilename for one in info.siblings or ()}
    there = _there(read_file(api, name, RECORD, info.sha, "model")) if RECORD in names else {}
    there = {file: digest for file, digest in there.items() if file in names}
    others = [one for one in names if one not in {*there, CARD} and not one.startswith(".")]
    foreign = sorted(one for one in others if not there or one in files)
    if foreign:
        raise UserError(
            f"{name} holds {listed(foreign)}, which mmpo did not push and leaves alone: name another model, or remove that there first"
        )
    if not overwrite:
        refuse_changed(api, name, info, there, files, "model")
    old = read_file(api, name, CARD, info.sha, "model") if CARD in names else None
    files[CARD] = _card(path, name, old, license).encode()
    gone = [one for one in there if one not in files]
    revision = commit(api, name, info, files, gone, message or f"{record['kind']} model by mmpo", "model")
    compare(api, name, revision, files, digests, "model")
    return PushedModel(model=name, **outcome(api, name, info, revision, files, "model"))


def _record(path: Path) -> dict[str, Any]:
    """mmpo.json of a folder whose run has ended. Raises UserError."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} holds neither a dataset (manifest.json) nor a model of mmpo (mmpo.json): name a folder of `mmpo build`, `mmpo train` "
            "or `mmpo merge`; `hf upload` pushes others"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / RECORD} can't be read: {error}") from error
    if not isinstance(record, dict) or record.get("kind") not in ("policy", "reward"):
        raise UserError(f"{path / RECORD} is no record of a model: nothing was pushed")
    if record.get("finished") is False:
        raise UserError(f"{path} holds a run that has not ended: the same `mmpo train` again goes on; then push")
    return record


def _adapter(path: Path, record: Mapping[str, Any]) -> bytes:
    """adapter_config.json with the name that its base has on the Hub."""
    config = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
    base = (record.get("origin") or {}).get("name")
    if not base:
        raise UserError(
            f"{path} is an adapter whose base has no name on the Hub that is known, so that nobody could load it there: push what "
            f"`mmpo merge {quote(str(path))} --out DIR` makes of both"
        )
    return (json.dumps(config | {"base_model_name_or_path": base}, indent=2) + "\n").encode()


def _without_paths(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the last names of what lies on this machine."""
    options = {key: _last(value) if key in _PATHS else value for key, value in (record.get("options") or {}).items()}
    summary = {key: _last(value) if key == "out" else value for key, value in (record.get("summary") or {}).items()}
    return {**record, **({"options": options} if options else {}), **({"summary": summary} if summary else {})}


def _last(value: Any) -> Any:
    here = isinstance(value, str) and bool(value) and (Path(value).exists() or NAME.fullmatch(value) is None)
    return Path(value).name if here else value


def _there(text: str) -> dict[str, FileDigest | None]:
    """The files that an earlier push left, from its record; {} where that is none of a push."""
    try:
        pushed = json.loads(text)[PUSHED]
    except (ValueError, KeyError, TypeError):
        return {}
    return {RECORD: None, CARD: None, ADAPTER: None, **pushed} if isinstance(pushed, dict) else {}


def _card(path: Path, name: str, old: str | None, license: str | None) -> str:
    """The page on the Hub: the folder's head and what it tells, under the name that it has there; what people added on the Hub stays."""
    text = (path / CARD).read_text(encoding="utf-8") if (path / CARD).is_file() else ""
    head, about = parts_of_page(text, str(path))
    about = about.replace(f'from_pretrained("{path.resolve().name}")', f'from_pretrained("{name}")')
    return marked_page(
        name, old, {**head, **({"license": license} if license else {}), "tags": head.get("tags", ["mmpo"])}, about + "\n"
    )
