"""`mmpo pull`: a dataset that `mmpo push` left on the Hub, as the folder that it was; digests compared, the commit written down."""

import os
from pathlib import Path
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.hub.client import FEEDBACK_FOLDER, LOGIN, hub_api, hub_errors, info_of, named, on_hub_name
from mmpo.pipeline.hub.push import PULLED
from mmpo.pipeline.storage import MANIFEST, manifest_text, name_of, read_manifest, replacing, safe_name
from mmpo.pipeline.storage.dataset import NEXT, manifest_files
from mmpo.pipeline.storage.files import HashedFile

BLOCK = 1 << 20


def pull_dataset(name: str, out: str | Path, *, feedback: bool = False) -> dict[str, Any]:
    """Fetch OWNER/NAME or OWNER/NAME@REVISION as the dataset folder `out`, whole or not at all. feedback: the FEEDBACK folder that stands
    beside pairs.

    Returns {"dataset", "revision" (the commit), "out", "kind", "rows", "files", "bytes"}. The manifest says under `pulled` from where it
    came. What was fetched before a stop lies in huggingface_hub's cache. Raises UserError: no such dataset or revision, nothing that mmpo
    pushed, a file that is not what the manifest says, an `out` that holds something else.
    """
    name, asked = named(name, revision=True)
    api = hub_api()
    info = info_of(api, name, asked)
    if info is None or info.sha is None:
        raise UserError(f"{name}: no such dataset on the Hub, or no right to see it; check the name, or {LOGIN}")
    revision, prefix = info.sha, FEEDBACK_FOLDER if feedback else ""
    names = {one.rfilename for one in info.siblings or ()}
    if on_hub_name(MANIFEST, prefix) not in names:
        what = "no FEEDBACK folder beside its rows" if feedback else f"no {MANIFEST}: `mmpo push` did not make it"
        raise UserError(f"{name}@{revision} has {what}. mmpo build hub:{name}@{revision} --format ... reads its rows")
    with replacing(Path(out)) as folder:
        cached = _fetched(name, revision, [on_hub_name(MANIFEST, prefix)])
        text = (cached / prefix / MANIFEST).read_bytes()
        (folder / MANIFEST).write_bytes(text)
        try:
            manifest = read_manifest(folder)
        except UserError as error:  # of the dataset, not of a folder that nobody knows
            raise UserError(str(error).replace(str(folder), f"{name}@{revision}")) from error
        if manifest.get("kind") not in NEXT:
            raise UserError(
                f"{name}@{revision}: its manifest says kind {manifest.get('kind')!r}; a dataset of mmpo holds {' or '.join(NEXT)}"
            )
        digests = {safe_name(file, name): digest for file, digest in manifest_files(manifest).items()}
        there = {file: on_hub_name(file, prefix) for file in digests}
        missing = [file for file, on_hub in there.items() if on_hub not in names]
        if missing:
            raise UserError(
                f"{name}@{revision} lacks {missing[0]}, which its manifest names: it was changed on the Hub; pull another revision"
            )
        cached = _fetched(name, revision, list(there.values()))
        for file, on_hub in there.items():
            _copy(cached / on_hub, folder / file, digests[file], f"{name}@{revision}: {file}")
        pulled = {**manifest, PULLED: {"dataset": name, "revision": revision}}
        (folder / MANIFEST).write_text(manifest_text(pulled), encoding="utf-8")
    sizes = [int((digest or {}).get("bytes", 0)) for digest in digests.values()]
    return {
        "dataset": name,
        "revision": revision,
        "out": name_of(out),
        "kind": manifest["kind"],
        "rows": manifest.get("rows", {}),
        "files": len(digests),
        "bytes": sum(sizes),
    }


def _fetched(name: str, revision: str, files: list[str]) -> Path:
    """The folder of huggingface_hub's cache with these files of a commit."""
    from huggingface_hub import snapshot_download

    with hub_errors(name, "pulling"):
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=files, endpoint=endpoint))


def _copy(source: Path, target: Path, digest: Any, where: str) -> None:
    """Copy a file. Raises UserError where it is not what its digest says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as file, HashedFile(target) as written:
            while block := file.read(BLOCK):
                written.write(block)
    except FileNotFoundError:
        raise UserError(f"{where} was not fetched; try again") from None
    if digest is not None and written.digest != digest:
        raise UserError(
            f"{where} is not what its manifest says (sha256 {written.digest['sha256']}): it was changed on the Hub or damaged on the way. "
            f"Remove {source.resolve()} and try again, or pull another revision"
        )
