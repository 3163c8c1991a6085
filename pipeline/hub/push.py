"""`mmpo push`: a dataset folder to the Hub in one commit, or nothing of it. What was uploaded before a stop is not uploaded again."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.hub.card import configs, page
from mmpo.pipeline.hub.client import CARD, FEEDBACK_FOLDER, Kind, git_oid, hub_api, hub_errors, info_of, named, on_hub_name, page_of
from mmpo.pipeline.storage import MANIFEST, FileDigest, apart, manifest_of, manifest_text, on_disk, read_manifest
from mmpo.pipeline.storage.dataset import manifest_files
from mmpo.pipeline.storage.files import file_digest
from mmpo.pipeline.tables import is_readable
from mmpo.pipeline.validate import validate

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

    Info = DatasetInfo | ModelInfo

PULLED = "pulled"
"""The key of a manifest that says from where and from which commit a folder was pulled; it is not pushed."""
MOST_NAMED = 3
LICENSE = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
"""A licence's id as the Hub's list has them; whether it is one of these the Hub says."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of a push. revision: the commit that holds it; private: who may read it; changed: whether it is a new commit."""

    revision: str
    url: str
    private: bool
    changed: bool
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PushedDataset(Pushed):
    """Of a dataset. warnings: in words."""

    dataset: str
    warnings: tuple[str, ...] = ()


def push_dataset(
    folder: str | Path,
    name: str,
    *,
    feedback: str | Path | None = None,
    public: bool = False,
    license: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
) -> PushedDataset:
    """Push a folder of PAIRS, or of FEEDBACK, to the dataset OWNER/NAME, which is made, private, where there is none.

    feedback: a FEEDBACK folder to stand beside the pairs, as the configuration `feedback`. public: make it public where it is new, and push
    into it where it is; license: for the head of its page; overwrite: files of an earlier push, too, that somebody changed on the Hub
    since. One commit holds all of it and takes away what an earlier push left; afterwards
    the Hub's digests are compared with the manifest's.

    Raises UserError: a folder that `validate` rejects, a dataset that holds something else, was changed or is public, no token
    or right; PartialResult where the network or the Hub fails: nothing is committed then, and the same call uploads only what is missing.
    """
    path, (name, _) = on_disk(folder), named(name, revision=False)
    check_license(license)
    manifest = read_manifest(path)
    folders = {"": (path, manifest)}
    if feedback is not None:
        manifest_of(path, "pairs")
        folders[FEEDBACK_FOLDER] = (on_disk(feedback), manifest_of(on_disk(feedback), "feedback"))
    warnings = [line for one, _ in folders.values() for line in _checked(one)]
    warnings += [line for one, about in folders.values() for line in _local_names(one, about)]
    contents = {prefix: _contents(one, about, prefix) for prefix, (one, about) in folders.items()}
    files = {name: where for part in contents.values() for name, where in part.items()}
    digests = {
        on_hub_name(file, prefix): digest
        for prefix, (_, about) in folders.items()
        for file, digest in manifest_files(about).items()
    }
    tables = configs("default", _splits(path, manifest))
    if feedback is not None:
        tables += configs("feedback", ["feedback"], FEEDBACK_FOLDER)
    api = hub_api()
    info = repository(api, name, public)
    there = _there(api, name, info)
    _refuse_others(name, info, there, tables)
    if not overwrite:
        refuse_changed(api, name, info, there, files)
    old = read_file(api, name, CARD, info.sha) if any(one.rfilename == CARD for one in info.siblings or ()) else None
    card = page(name, manifest, tables, old, license)
    gone = [one for one in there if one not in files]
    revision = commit(
        api, name, info, {**files, CARD: card.encode()}, gone, message or f"{sum(manifest['rows'].values()):,} rows by mmpo"
    )
    compare(api, name, revision, files, digests)
    return PushedDataset(dataset=name, warnings=tuple(warnings), **outcome(api, name, info, revision, files))


def outcome(
    api: "HfApi", name: str, info: "Info", revision: str, files: Mapping[str, Path | bytes], kind: Kind = "dataset"
) -> dict[str, Any]:
    """The fields of `Pushed`. info: of the repository before; files: what was pushed, by their names there."""
    sizes = [len(where) if isinstance(where, bytes) else where.stat().st_size for where in files.values()]
    about = {"revision": revision, "url": page_of(api, name, kind), "private": bool(info.private), "changed": revision != info.sha}
    return {**about, "files": len(files), "bytes": sum(sizes)}


def check_license(license: str | None) -> None:
    """Raises UserError for what can't be a licence's id."""
    if license is not None and not LICENSE.fullmatch(license):
        raise UserError(
            f"--license {license!r}: the Hub takes a licence's id in small letters, digits, - and ., such as cc-by-4.0, mit, apache-2.0 "
            "or other"
        )


Contents = Mapping[str, Path | bytes]
"""The files of a push by their names on the Hub."""


def _checked(folder: Path) -> list[str]:
    """What `validate` warns of. Raises UserError where it rejects the folder."""
    found = validate(folder)
    failed = [f"{check['name']} ({check['message']})" for check in found["checks"] if check["status"] == "fail"]
    if failed:
        raise UserError(f"{folder} does not pass `mmpo validate` and is not pushed: {'; '.join(failed)}")
    return [f"{check['name']}: {check['message']}" for check in found["checks"] if check["status"] == "warn"]


def _local_names(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    files = [str(one.get("name")) for key in ("inputs", "decontaminated_against", "tokenizers") for one in manifest.get(key) or ()]
    names = [name for name in files if Path(name).is_absolute()]
    if not names:
        return []
    named = f"{len(names):,} input files by their paths on this machine, such as {names[0]}"
    return [
        f"the manifest of {folder} names {named}: whoever may read the dataset sees them; relative paths at `mmpo build` do not tell"
    ]


def _splits(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    return [split for split in manifest["rows"] if (folder / split).is_dir()]


def _contents(folder: Path, manifest: Mapping[str, Any], prefix: str) -> Contents:
    """The folder's files by their names on the Hub. Its own README stands under another name where the dataset's page is."""
    own = {key: value for key, value in manifest.items() if key != PULLED}
    text = manifest_text(own)
    files = {on_hub_name(file, prefix): folder / file for file in manifest_files(manifest)}
    return {**files, on_hub_name(MANIFEST, prefix): text.encode()}


def repository(api: "HfApi", name: str, public: bool, kind: Kind = "dataset") -> "Info":
    """The dataset or model on the Hub, made where there is none. Raises UserError where it is public and nobody said so."""
    info = info_of(api, name, kind=kind)
    if info is None:
        with hub_errors(name, f"making a {kind}", kind=kind):
            api.create_repo(name, repo_type=kind, private=not public)
        info = info_of(api, name, kind=kind)
    if info is None or info.sha is None:
        raise UserError(f"{name}: the Hub made the {kind} and does not show it; try again")
    if not info.private and not public:
        raise UserError(
            f"{name} is public: everybody could read what is pushed. Say --public if that is meant, or name another {kind}"
        )
    return info


def _there(api: "HfApi", name: str, info: "Info") -> dict[str, FileDigest | None]:
    """The files that earlier pushes left on the Hub."""
    names = {one.rfilename for one in info.siblings or ()}
    found: dict[str, FileDigest | None] = {}
    for prefix in ("", FEEDBACK_FOLDER):
        there = on_hub_name(MANIFEST, prefix)
        if there in names:
            listed = _ours(read_file(api, name, there, info.sha))
            found |= {} if listed is None else {there: None} | {on_hub_name(file, prefix): one for file, one in listed.items()}
    return {file: digest for file, digest in found.items() if file in names}


def _ours(text: str) -> Mapping[str, FileDigest | None] | None:
    """The files that a manifest on the Hub names, None where it is none of mmpo's: other tools call files so, too."""
    try:
        manifest = json.loads(text)
    except ValueError:
        return None
    own = (
        isinstance(manifest, dict) and is_readable(manifest.get("schema_version")) and manifest.get("kind") in ("pairs", "feedback")
    )
    return manifest_files(manifest) if own else None


def _refuse_others(name: str, info: "Info", there: Mapping[str, Any], tables: Iterable[Mapping[str, Any]]) -> None:
    """Raise UserError where the dataset holds what mmpo did not push: data of something else, or files that would be read as rows."""
    others = [one.rfilename for one in info.siblings or () if one.rfilename not in there]
    folders = {split["path"].rpartition("/")[0] for table in tables for split in table["data_files"]}
    inside = [one for one in others if one.rpartition("/")[0] in folders]
    foreign = inside if there else [one for one in others if not one.startswith(".") and one != CARD]
    if foreign:
        raise UserError(
            f"{name} holds {listed(foreign)}, which mmpo did not push and leaves alone: name another dataset, or remove that there first"
        )


def refuse_changed(
    api: "HfApi", name: str, info: "Info", there: Mapping[str, FileDigest | None], files: Contents, kind: Kind = "dataset"
) -> None:
    """Raise UserError where a file of an earlier push is not what the manifest beside it says, nor what is pushed now: somebody changed
    it on the Hub, and the push would undo that."""
    entries = _entries(api, name, info.sha, kind) if any(there.values()) else {}
    changed = []
    for file, digest in there.items():
        if digest is None or ((where := files.get(file)) and not isinstance(where, bytes) and _holds(entries[file], where)):
            continue
        lfs = entries[file].lfs
        found = lfs.sha256 if lfs else file_digest(_fetched(api, name, file, info.sha, kind))["sha256"]
        if found != digest.get("sha256"):
            changed.append(file)
    if changed:
        raise UserError(
            f"{name}: {listed(changed)} on the Hub differs from what was pushed: somebody changed it there, and nothing was pushed. "
            f"Fetch what you want to keep from {page_of(api, name, kind)}/tree/main; --overwrite then puts ours in its place "
            "(older commits stay on the Hub)"
        )


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def _fetched(api: "HfApi", name: str, file: str, revision: str | None, kind: Kind) -> Path:
    with hub_errors(name, "reading", kind=kind):
        return Path(api.hf_hub_download(name, file, repo_type=kind, revision=revision))


def _entries(api: "HfApi", name: str, revision: str | None, kind: Kind) -> dict[str, Any]:
    """The files of a revision by name, with size and digest."""
    with hub_errors(name, "reading", kind=kind):
        return {one.path: one for one in api.list_repo_tree(name, recursive=True, repo_type=kind, revision=revision)}


def _holds(entry: Any, where: Path, digest: FileDigest | None = None) -> bool:
    """Whether a file on the Hub is the one here. digest: that file's, where it is known."""
    if entry.lfs:
        return bool(entry.lfs.sha256 == (digest or file_digest(where))["sha256"])
    return bool(entry.blob_id == git_oid(where))


def read_file(api: "HfApi", name: str, file: str, revision: str | None, kind: Kind = "dataset") -> str:
    """The text of a file on the Hub. Raises UserError where it is none."""
    try:
        return _fetched(api, name, file, revision, kind).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: {file} there is no UTF-8 text: mend or remove it there, then try again") from error


def commit(
    api: "HfApi", name: str, info: "Info", files: Contents, gone: Iterable[str], message: str, kind: Kind = "dataset"
) -> str:
    """Upload and commit; the commit that holds the files, the old one where nothing differs."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations = [
        *(CommitOperationAdd(there, where) for there, where in files.items()),
        *(CommitOperationDelete(there) for there in gone),
    ]
    with hub_errors(name, "pushing", resumes=True, kind=kind):
        # What is large goes first, in a thread that Ctrl-C does not wait for: until the commit nothing of it is to be seen.
        adds = [one for one in operations if isinstance(one, CommitOperationAdd)]
        apart(lambda: api.preupload_lfs_files(name, adds, repo_type=kind, free_memory=False))
        done = api.create_commit(name, operations, commit_message=message, repo_type=kind, parent_commit=info.sha)
    return str(done.oid)


def compare(
    api: "HfApi", name: str, revision: str, files: Contents, digests: Mapping[str, FileDigest | None], kind: Kind = "dataset"
) -> None:
    """Raise PartialResult where the Hub does not hold what the manifest names: a .gitignore there leaves files out without a word, and the
    folder may have become another one meanwhile."""
    entries = _entries(api, name, revision, kind)
    wrong = []
    for there, where in files.items():
        entry = entries.get(there)
        if entry is None or not (
            entry.size == len(where) if isinstance(where, bytes) else _holds(entry, where, digests.get(there))
        ):
            wrong.append(there)
    if wrong:
        raise PartialResult(
            f"{name}@{revision}: the Hub does not hold {listed(wrong)} as pushed; a .gitignore of the {kind} leaves files out: mend it "
            "there, then push again"
        )
