"""What a dataset's manifest must hold, and the files that it names."""

import json
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.files import FileDigest
from mmpo.pipeline.tables import is_readable, readable_versions

MANIFEST = "manifest.json"


def parsed_manifest(text: str, folder: str) -> dict[str, Any]:
    """A manifest from its text. folder: whose it is, for messages. Raises UserError where it is damaged or of another schema version."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise UserError(f"{folder}/{MANIFEST} can't be read: {error}") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not is_readable(version):
        raise UserError(f"{folder}: schema version {version!r}; this mmpo reads {readable_versions()}. Build the dataset again")
    try:
        _Manifest.model_validate_json(json.dumps(manifest))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in _VARIANTS)
        raise UserError(
            f"{folder}/{MANIFEST}: {place} is damaged ({first['msg']}). Put the file back as it was, or build the dataset again"
        ) from error
    return dict(manifest)


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written, in JSON that any reader takes."""
    return json.dumps(plain(manifest), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value for JSON: of the numbers that it has no word for infinity is the string "inf", all others null.

    >>> plain({"gamma": float("inf"), "bias": [1.5, float("nan")]})
    {'gamma': 'inf', 'bias': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value


class _Part(BaseModel):
    """Of a manifest or of something in it: what is read of it has its type; more may be there."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Counts(_Part):
    into: int = Field(alias="in")
    created: int
    out: int
    merged: int
    dropped: dict[str, int]


class _Recipe(_Part):
    split: tuple[float, float, float] | None = None
    split_by: str | None = None
    ties: str | None = None
    min_margin: float | None = None


class _Digest(_Part):
    sha256: str
    bytes: int


class _Saturated(_Part):
    grades: int
    at_ends: int | None
    transform: str | None


class _OfSource(_Part):
    ties: str = "keep"
    min_margin: float = 0.0
    margin_times: float = 1.0
    weight: float = 1.0
    evidence: str | None = None
    score_range: tuple[float, float] | None = None
    rounding_steps: dict[str, float] = {}


class _Manifest(_Part):
    kind: str = ""
    recipe: _Recipe | None = None
    rows: dict[str, int] = {}
    prompts: int | None = None
    counts: dict[str, dict[str, _Counts]] = {}
    files: dict[str, _Digest] | list[str] = []
    scales: list[tuple[float | None, float | None]] = []
    normalisation: str = ""
    evidence: str | None = None
    score_range: tuple[float, float] | None = None
    rounding_steps: dict[str, float] = {}
    grade_ranges: dict[str, dict[str, tuple[float, float]]] = {}
    saturated: dict[str, _Saturated] = {}
    mixture: dict[str, _OfSource] = {}
    by_source: dict[str, dict[str, Any]] = {}
    ties_at_ends: int | None = None
    warnings: list[str] = []
    inputs: list[dict[str, Any]] = []
    pulled: dict[str, Any] | None = None
    argilla: dict[str, Any] = {}


_VARIANTS = ("dict[str,_Digest]", "list[str]")
"""How pydantic names what `files` may be, where it says in which place an error is."""


def manifest_files(manifest: Mapping[str, Any]) -> dict[str, FileDigest | None]:
    """The files of the folder that a manifest names, each with its digest; None: unknown, as in what version 0.1.0 wrote."""
    files = manifest.get("files", {})
    found = files.items() if isinstance(files, dict) else ((name, None) for name in files)
    return {str(name): digest if isinstance(digest, dict) else None for name, digest in found}


def safe_name(name: str, where: str) -> str:
    """The name of a file of a dataset folder, which comes from elsewhere. Raises UserError where it would lead out of the folder."""
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or not path.parts
        or any(part in ("..", ".") for part in path.parts)
        or "\\" in name
        or path.parts[0] == ".git"
    ):
        raise UserError(f"{where}: its manifest names the file {name!r}, which is none inside a folder; nothing was written")
    return name
