"""What a model was made of, by the name that others know it by: one of the Hub, never a path of this machine."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

from mmpo.train.record import read_record

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_IN_CACHE = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")
_HEAD = re.compile(r"\A---\r?\n(.*?)^---\r?\n", re.DOTALL | re.MULTILINE)
_FETCHED = "origin.json"
"""What `make models` leaves beside the models that it fetches."""
_MOST_STEPS = 8
"""From an adapter to its base, and on."""


@dataclass(frozen=True)
class Origin:
    """name: of a model on the Hub, None where it is unknown. called: what it is called here, without folders. license: an id.
    by_way_of: the last run of ours between that model and this one, where there is one.
    """

    name: str | None
    called: str
    license: str | None = None
    by_way_of: str | None = None

    def __str__(self) -> str:
        return (self.name or self.called) + (f", by way of `{self.by_way_of}`" if self.by_way_of else "")

    def as_dict(self) -> dict[str, Any]:
        """As mmpo.json keeps it."""
        return asdict(self)


def origin_of(model: str, steps: int = _MOST_STEPS) -> Origin:
    """Of what `--model` names: a Hub name, or a folder, which says itself (a run of ours), by its adapter's or its own configuration
    (`_name_or_path`), or by its place in the Hub's cache what it came from.
    """
    path = Path(model)
    if not path.exists():
        known = HUB_NAME.fullmatch(model) is not None and model != "tiny"
        return Origin(
            model if known else None,
            "a tiny model built from the data" if model == "tiny" else model,
            _license_on_hub(model, known),
        )
    called, license = path.resolve().name, _license_in(path / "README.md")
    then = (read_record(path) or {}).get("origin")
    if isinstance(then, Mapping) and then.get("called"):
        return Origin(then.get("name"), str(then["called"]), then.get("license"), called)
    if found := _IN_CACHE.search(f"{path.resolve()}/"):
        return Origin(f"{found[1]}/{found[2]}", called, license)
    license = license or _key_of(path / _FETCHED, "license")
    for file, key in ((_FETCHED, "model"), ("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        given = _key_of(path / file, key)
        if given and steps and given != model:
            further = origin_of(given, steps - 1)
            if further.name:
                return Origin(further.name, called, license or further.license)
    return Origin(None, called, license)


def _key_of(file: Path, key: str) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(file.read_text(encoding="utf-8")).get(key)
        return found if isinstance(found, str) and found else None
    return None


def _license_in(readme: Path) -> str | None:
    """The licence that the head of a page names."""
    with suppress(OSError, ValueError, yaml.YAMLError, AttributeError, TypeError, RecursionError):
        found = yaml.safe_load(_HEAD.match(readme.read_text(encoding="utf-8"))[1]).get("license")  # type: ignore[index]
        return found if isinstance(found, str) else None
    return None


def _license_on_hub(name: str, known: bool) -> str | None:
    if not known:
        return None
    with suppress(Exception):  # the Hub may not be there; then the licence is not known
        page = try_to_load_from_cache(name, "README.md")
        if not isinstance(page, str) and not constants.HF_HUB_OFFLINE:
            page = hf_hub_download(name, "README.md", etag_timeout=5)
        return _license_in(Path(page)) if isinstance(page, str) else None
    return None
