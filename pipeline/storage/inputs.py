"""What the user names as input - files, folders, globs, Hub datasets - as a list of files whose kind is known."""

import codecs
import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.archives import WORKBOOKS, sheet_of
from mmpo.pipeline.storage.dataset import MANIFEST, read_manifest
from mmpo.pipeline.storage.objects import OURS, fetched, objects_at, on_disk, url_of
from mmpo.pipeline.storage.parts import split_files
from mmpo.pipeline.storage.rows import holds_array
from mmpo.pipeline.storage.text_files import BOM, COMPRESSIONS, InputFile, blocks

KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    **dict.fromkeys(WORKBOOKS, "csv"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".eval": "eval",
}
# Formats that say how a file is written rather than what it holds.
FORMAT_KINDS = {
    "jsonl": ("json",),
    "csv": ("csv",),
    "parquet": ("parquet", "arrow"),
    "feedback": ("parquet", "arrow"),
    "inspect": ("eval", "json"),
}
REPEATED_HEADERS = ("promptfoo", "")
"""Formats whose CSV has a column name again for every output; and a look at a file whose format nobody has named yet."""
# In a folder, files that sit beside data: ours and those of `datasets`.
BESIDE_DATA = {
    "manifest.json",
    "rejects.parquet",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}
HUB = "hub:"
HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.-]+))?", re.ASCII
)
"""OWNER/NAME[/CONFIGURATION][@REVISION][:SPLIT]; a revision is a branch, a tag or a commit. Before it, HUB says that it is no path."""


AnyPath = TypeVar("AnyPath", bound=PurePath)


def resolve_inputs(
    paths: Sequence[str | Path],
    format: str,
    *,
    encoding: str | None = None,
    separator: str | None = None,
    sheet: str | None = None,
    look: bool = False,
) -> list[InputFile]:
    """The data files behind the paths, in a fixed order, each once.

    paths: files, folders (searched for data files at any depth, hidden ones left out), globs, Hub datasets
    "owner/name" or "owner/name:split", or what stands in an object store (s3://BUCKET/KEY, with * or not), which is fetched.
    format: the source's name; `jsonl`, `csv`, `parquet` and `feedback` take the files of their kind out of a folder. encoding: of text
    files, by a name that Python knows (default: UTF-8, or what a byte-order mark says). separator: of CSV, one character or "tab"
    (default: found in the header). sheet: of an Excel workbook (default: the only one). look: only the first file is wanted, and of a large
    object only its beginning.
    Raises UserError: nothing there, nothing of that kind, a file of another kind, a file that can't be read, an unknown encoding.
    """
    encoding, separator = _encoding(encoding), _separator(separator)
    found: dict[str, InputFile] = {}
    for given in paths:
        for file in _files(str(url_of(given) or given), FORMAT_KINDS.get(format), format, look):
            written = _written(file, encoding, separator, sheet)
            found.setdefault(str(Path(file.path).resolve()), replace(written, repeats=format in REPEATED_HEADERS))
    return list(found.values())


def _encoding(name: str | None) -> str | None:
    """The encoding by the name that Python has for it; None for UTF-8."""
    if name is None:
        return None
    try:
        "".encode(name)
        known = codecs.lookup(name).name
    except (LookupError, UnicodeError) as error:
        raise UserError(
            f"--encoding {name}: {error}. Known are utf-8, utf-16, cp1252, latin-1, gb18030, shift_jis and others"
        ) from error
    return None if known in ("utf-8", "utf-8-sig", "ascii") else known


def _separator(given: str | None) -> str | None:
    sign = {"tab": "\t", "\\t": "\t"}.get(given or "", given)
    if sign is not None and (len(sign) != 1 or sign in '\r\n"'):
        raise UserError(f"--sep {given!r}: the separator is one character, such as ; or tab")
    return sign


def _written(file: InputFile, encoding: str | None, separator: str | None, sheet: str | None) -> InputFile:
    """The file with what was said of how it is written. Raises UserError where that means nothing."""
    if Path(file.path).suffix.lower() in WORKBOOKS:
        for flag, given in (("--encoding", encoding), ("--sep", separator)):
            if given is not None:
                raise UserError(f"{file.name}: {flag} is for text files, and this is an Excel workbook")
        file = replace(file, sheet=sheet)
        return replace(file, sheet=sheet_of(file))
    if sheet is not None:
        raise UserError(
            f"{file.name}: --sheet is for Excel workbooks ({', '.join(WORKBOOKS)}), and this file holds {_SPOKEN[file.kind]}"
        )
    if encoding is not None and file.kind not in ("json", "csv"):
        raise UserError(f"{file.name}: --encoding is for text files, and this one holds {_SPOKEN[file.kind]}")
    if separator is not None and file.kind != "csv":
        raise UserError(f"{file.name}: --sep is for CSV, and this file holds {_SPOKEN[file.kind]}")
    return replace(file, encoding=encoding or file.encoding, separator=separator)


def _files(given: str, kinds: tuple[str, ...] | None, format: str, look: bool) -> list[InputFile]:
    if url_of(given):
        return _objects(given, kinds, format, look)
    if given.startswith(HUB):
        if told := HUB_NAME.fullmatch(given.removeprefix(HUB)):
            return _hub(given, told)
        raise UserError(
            f"{given}: a Hub dataset is {HUB}OWNER/NAME[/CONFIGURATION][@REVISION][:SPLIT], such as {HUB}nvidia/HelpSteer2:train"
        )
    path = Path(given)
    if path.is_dir():
        return _folder(path, kinds, format)
    if path.exists():
        return [_checked(given, kinds, format)]
    if glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))
        if not matches:
            raise UserError(f"no file matches {given!r}")
        return [file for match in matches for file in _files(match, kinds, format, look) if not Path(match).name.startswith(".")]
    told = HUB_NAME.fullmatch(given)
    if told and not (told["config"] or told["revision"]) and _kind(path) is None and not path.parent.exists():
        return _hub(given, told)
    raise UserError(f"no such file or folder: {given}")


def _folder(folder: Path, kinds: tuple[str, ...] | None, format: str) -> list[InputFile]:
    if format == "feedback" and (folder / MANIFEST).is_file() and read_manifest(folder).get("kind") == "feedback":
        return [InputFile(str(path), "parquet", str(path)) for path in split_files(folder, "feedback")]
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
    return [_checked(str(path), kinds, format) for path in _fitting(str(folder), inside, kinds, format)]


def _fitting(folder: str, inside: Sequence[AnyPath], kinds: tuple[str, ...] | None, format: str) -> list[AnyPath]:
    """The files of a folder that are data of the format. Raises UserError where there are none, with what there is."""
    data = [path for path in inside if _kind(path) and path.name not in BESIDE_DATA]
    fitting = [path for path in data if kinds is None or _kind(path) in kinds]
    if fitting:
        return fitting
    held = sorted({path.suffix or path.name for path in inside})
    raise UserError(
        f"{folder}: holds no data file for format {format!r}"
        + (f"; it holds files of {', '.join(held[:8])}" if held else "; it is empty")
        + f". Read are {', '.join(sorted(suffix for suffix, kind in KINDS.items() if not kinds or kind in kinds))}"
    )


def _objects(url: str, kinds: tuple[str, ...] | None, format: str, look: bool) -> list[InputFile]:
    """The copies of objects. Those of a FEEDBACK folder are its parts, checked by their digests."""
    found = objects_at(url)
    names: Sequence[str] = found.names
    if found.folder:
        if (format == "feedback" and MANIFEST in names) or any(OURS.fullmatch(name) for name in names):
            folder = on_disk(url)
            parts = _folder(folder, kinds, format)
            return [replace(one, name=f"{url.rstrip('/')}/{PurePath(one.path).relative_to(folder)}") for one in parts]
        inside = [path for path in map(PurePosixPath, names) if not _hidden(path)]
        names = [str(path) for path in _fitting(url, inside, kinds, format)]
    wanted = found.addresses(names[:1] if look else names)
    files = []
    for (path, stored), address in zip(fetched(wanted, head=look), wanted, strict=True):
        one = _checked(str(path), kinds, format, address.url)
        if look and path.stat().st_size < stored.bytes and (one.kind not in ("json", "csv") or holds_array(one)):
            [(path, stored)] = fetched([address])  # what can only be read whole
            one = replace(one, path=str(path))
        files.append(replace(one, etag=stored.etag))
    return files


def _hidden(path: PurePath) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _kind(path: PurePath) -> str | None:
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        inner = KINDS.get(Path(path.stem).suffix.lower())
        return inner if inner in ("json", "csv") else None
    return KINDS.get(suffix)


def _checked(path: str, kinds: tuple[str, ...] | None, format: str, name: str | None = None) -> InputFile:
    """The file with its kind: by content where that is plain to see, else by name, else by format. name: for messages."""
    given = name or path
    if given != given.encode(errors="replace").decode():
        raise UserError(f"the name of the file {given!a} holds bytes that are no UTF-8 text, and names are kept: rename it")
    named = _kind(Path(given)) or (kinds[0] if kinds else "json")
    start = next(blocks(path, given), b"")
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    held = _held(start if marked is None else start.decode(marked, "ignore").encode(), named)
    other = next((what for begin, what in OTHERS if start.startswith(begin)), None)
    packed = named == "eval" or Path(path).suffix.lower() in WORKBOOKS
    if other is not None and not (packed and start.startswith(b"PK")):
        raise UserError(f"{given} is {other}")
    spoken = "an Excel workbook" if Path(path).suffix.lower() in WORKBOOKS else _SPOKEN[held]
    if kinds and held not in kinds:
        better = {"json": "jsonl", "csv": "csv", "eval": "inspect"}.get(held, "parquet")
        raise UserError(f"{given}: format {format!r} was named, but the file holds {spoken}; try --format {better}")
    if held != named:
        raise UserError(f"{given}: by its name it holds {_SPOKEN[named]}, but its content is {_SPOKEN[held]}; rename it")
    return InputFile(path, held, given, marked)


MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte-order marks, the longer ones first, and the encodings that they stand for."""
OTHERS = (
    (b"PK\x03\x04", "a ZIP archive: unpack it; an Excel workbook, which is one too, is read where its name ends in .xlsx"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls): save it as .xlsx, or its sheet as CSV"),
    (b"\x1f\x8b", "compressed by gzip: its name must end in .jsonl.gz, .json.gz or .csv.gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard: its name must end in .jsonl.zst, .json.zst or .csv.zst"),
    (b"BZh", "compressed by bzip2: unpack it, or compress it by gzip"),
    (b"\xfd7zXZ", "compressed by xz: unpack it, or compress it by gzip"),
    (b"SQLite format 3\0", "an SQLite database: write its rows as JSON lines or CSV"),
    (b"%PDF", "a PDF"),
    (b"<!DOCTYPE", "a web page: what was saved is perhaps a site's error or log-in page"),
    (b"<!doctype", "a web page: what was saved is perhaps a site's error or log-in page"),
    (b"<html", "a web page: what was saved is perhaps a site's error or log-in page"),
    (b"version https://git-lfs", "a pointer of Git LFS: `git lfs pull` fetches the file itself"),
)
"""How files begin that hold no rows, and what they are."""


_SPOKEN = {"json": "JSON", "csv": "CSV", "parquet": "Parquet", "arrow": "Arrow", "eval": "a log of inspect_ai"}


def _held(start: bytes, named: str) -> str:
    """What a file's first bytes say that it holds, in the doubt what its name says."""
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if named == "csv" and re.match(rb'\s*(\{\s*"|\[\s*[\{\[])', start.removeprefix(BOM)):
        return "json"
    return named


def _hub(given: str, told: re.Match[str]) -> list[InputFile]:
    """The Arrow files in which `datasets` keeps a Hub dataset after fetching it, with the commit that they are of."""
    from datasets import Dataset, DatasetDict, load_dataset

    name, split = told["name"], told["split"]
    asked: dict[str, Any] = {"name": told["config"], "revision": told["revision"]}
    try:
        loaded = load_dataset(name, split=split, **{key: value for key, value in asked.items() if value})
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        where = given if given.startswith(HUB) else f"no such file or folder: {given}; as a Hub dataset it"
        raise UserError(f"{where} can't be loaded{' either' if where != given else ''}: {first}") from error
    splits = loaded if isinstance(loaded, DatasetDict) else {split: loaded}
    files = [
        InputFile(cached["filename"], "arrow", f"{name}:{part}" if part else name, revision=_commit(cached["filename"]))
        for part, dataset in splits.items()
        if isinstance(dataset, Dataset)
        for cached in dataset.cache_files
    ]
    if not files:
        raise UserError(f"{given}: the Hub dataset has no rows")
    return files


def _commit(cached: str) -> str | None:
    """The commit in the path of a file that `datasets` keeps, None where it names none.

    >>> _commit("/datasets/owner___name/default/0.0.0/" + "a" * 40 + "/name-train.arrow") == "a" * 40
    True
    """
    return next((part for part in reversed(Path(cached).parts) if re.fullmatch(r"[0-9a-f]{40}", part)), None)


def input_bytes(files: Iterable[InputFile]) -> int:
    """How many bytes the files have, as they lie on disk."""
    return sum(Path(file.path).stat().st_size for file in files)
