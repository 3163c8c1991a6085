"""The dataset folder: written whole or not at all, with a manifest, a Hugging Face dataset card and everything that was dropped."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import leaves
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.files import FileDigest, HashedFile, atomic_folder, digest, file_digest, identity
from mmpo.pipeline.storage.manifest import MANIFEST, manifest_files, manifest_text, parsed_manifest
from mmpo.pipeline.storage.objects import check_target, name_of, on_disk, publishing, url_of
from mmpo.pipeline.tables import METADATA_KEY, REJECTS, SCHEMA_VERSION, SPLITS

ROW_GROUPS_PER_FILE = 8
MAX_PART_BYTES = 64 << 20
MOST_DISTINCT = 0.7
"""Share of the rows that may have a prompt of their own before texts are taken to repeat no more."""
FIRST_ROWS = 4096
"""Of a table, which say whether the numbers of a column repeat."""
DISTINCT = frozenset(("prompt_id", "chosen_id", "rejected_id", "id", "content", "text", "note", "extra"))
"""Fields whose values repeat with the prompt only."""
STATISTICS = ["prompt_id", "quality_margin", "margin_se", "score_chosen", "score_rejected", "preferring", "raters"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset folder. Raises UserError where there is none or it is of another schema version."""
    folder = on_disk(folder)
    path = folder / MANIFEST
    if folder.is_file():
        raise UserError(f"{folder} is a file, no dataset folder; `mmpo build` makes one of it")
    if not folder.is_dir():
        raise UserError(f"no such dataset folder: {folder}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {MANIFEST}: it is no dataset of mmpo; `mmpo build` writes one") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    return parsed_manifest(text, str(folder))


NEXT = {
    "pairs": "holds FEEDBACK, no pairs: mmpo build {} --format feedback --out ... makes them",
    "feedback": "holds pairs, no FEEDBACK: mmpo build {} --format trl --rater-name pairs --feedback-only --out DIR makes FEEDBACK of their "
    "prompts, completions and scores",
}
"""Where a folder of this kind is needed: what the other kind holds, and how to get this one."""


def manifest_of(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder of "pairs" or of "feedback". Raises UserError also where it holds the other kind."""
    manifest = read_manifest(folder)
    found = manifest.get("kind")
    if found and found not in NEXT:
        raise UserError(f"{folder} holds {found}, neither pairs nor FEEDBACK; name another folder")
    if found != kind:
        raise UserError(f"{folder} {NEXT[kind].format(folder)}")
    return manifest


def check_out(out: Path, sources: Iterable[str | Path] = ()) -> None:
    """Refuse an output folder that is one of the sources, or exists and holds anything that we did not write. Raises UserError."""
    if any(_same(source, out) for source in sources):
        raise UserError(
            f"--out {name_of(out)} is the input itself; name another folder, so that a stopped run leaves the input whole"
        )
    if url := url_of(out):
        check_target(url)
        return
    if not out.exists():
        parent = Path(os.path.realpath(out)).parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise UserError(f"--out {out}: {parent} is a file, no folder")
        return
    if not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder that does not exist yet")
    inside = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    if not inside:
        return
    if MANIFEST not in inside:
        raise UserError(
            f"--out {out} exists and holds something else ({', '.join(inside[:3])}); name another folder or move it away"
        )
    ours = {MANIFEST}
    for name in manifest_files(read_manifest(out)):
        ours |= {name, *(parent.as_posix() for parent in PurePosixPath(name).parents)}
    foreign = [name for name in inside if name not in ours]
    if foreign:
        raise UserError(
            f"--out {out} is a dataset but also holds {', '.join(foreign[:3])}, which mmpo did not write; move that away"
        )


def _same(source: str | Path, out: Path) -> bool:
    if url_of(source) or url_of(out):
        return (url_of(source) or "").rstrip("/") == (url_of(out) or "").rstrip("/")
    return Path(source).resolve() == out.resolve()


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of the dataset `out` in one step when the block ends well, and vanishes when it does not.

    Raises UserError where `out` can't be written or the disk is full, and where it holds, before the block or after it, anything that we
    did not write or another dataset than before. The address of an object store is written there in the end, its manifest last.
    """
    if url := url_of(out):
        with publishing(url, read_manifest) as folder:
            yield folder
        return
    check_out(out)
    before = identity(out / MANIFEST)
    with atomic_folder(out) as folder:
        yield folder
        check_out(out)
        if identity(out / MANIFEST) != before:
            raise UserError(f"--out {out}: another dataset came there meanwhile and is left alone; nothing was written")


class PartWriter:
    """Parquet files of one split, a row group a table, a new file every eight row groups (about 512 MiB before compression).

    digests: of every finished file by its name in the dataset, taken while it was written. repeating: whether texts repeat, None before
    that is known. Pages have checksums, so that whoever reads them meets damage as an error.
    """

    def __init__(self, folder: Path, prefix: str, metadata: Mapping[str, Any]) -> None:
        self.folder = folder
        self.prefix = prefix
        self.metadata = {"schema_version": SCHEMA_VERSION, **metadata}
        self.paths: list[Path] = []
        self.digests: dict[str, FileDigest] = {}
        self.repeating: bool | None = None
        self._file: HashedFile | None = None
        self._writer: pq.ParquetWriter | None = None
        self._groups = 0

    def write(self, table: pa.Table) -> None:
        """Append the table as one row group.

        A dictionary of up to 64 MiB, not 1: texts that occur in many pairs are compressed and stored once a row group. Where hardly any
        occurs twice (as the first table shows), texts and ids are stored in pages of 1 MiB, which readers hold one at a time.
        Numbers of which few are equal have no dictionary either.
        """
        if not table.num_rows:
            return
        if self.repeating is None:
            self.repeating = repeating(pc.count_distinct(table["prompt_id"]).as_py(), table.num_rows)
        if self._writer is None:
            self.folder.mkdir(exist_ok=True)  # in a folder that is there, or no longer: then it does not come back
            path = self.folder / f"{self.prefix}-{len(self.paths):05d}.parquet"
            self.paths.append(path)
            self._file = HashedFile(path)
            names = [name for field in table.schema for name, _ in leaves(field)]
            texts = {name for name in names if name.rpartition(".")[2] in DISTINCT and not self.repeating}
            numbers = {name for name in table.column_names if _mostly_distinct(table[name])}
            self._writer = pq.ParquetWriter(
                self._file,
                table.schema.remove_metadata(),
                compression="zstd",
                use_dictionary=[name for name in names if name not in texts | numbers],
                store_schema=False,
                dictionary_pagesize_limit=64 << 20,
                write_page_checksum=True,
                write_statistics=[name for name in STATISTICS if name in table.column_names],
            )
            self._groups = 0
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._groups += 1
        if self._groups >= ROW_GROUPS_PER_FILE:
            self.close()

    def close(self) -> None:
        """Finish the current file."""
        if self._writer is not None and self._file is not None:
            self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(self.metadata, ensure_ascii=False).encode()})
            self._writer.close()
            self._file.close()
            self.digests[f"{self.folder.name}/{self.paths[-1].name}"] = self._file.digest
            self._writer = self._file = None


def repeating(prompts: int, rows: int) -> bool:
    """Whether texts of so many prompts are worth a dictionary in so many rows."""
    return prompts < MOST_DISTINCT * rows


def _mostly_distinct(column: pa.ChunkedArray) -> bool:
    """Whether a column holds numbers of which most stand there once, by its first rows."""
    if not pa.types.is_float64(column.type):
        return False
    first = column.slice(0, FIRST_ROWS)
    return pc.count_distinct(first).as_py() > len(first) / 2


def write_manifest(folder: Path, values: Mapping[str, Any], digests: Mapping[str, FileDigest]) -> None:
    """Write manifest.json with the schema version, the given values, and SHA-256 and size of each of the folder's files.

    digests: those that are known already, by name; the other files are read.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: digests.get(name) or file_digest(folder / name) for name in names}
    text = manifest_text({"schema_version": SCHEMA_VERSION, **values, "files": files})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


CARD = """---
configs:
- config_name: default
  data_files:
{files}tags:
- preference
- margins
- mmpo
---

{about}

| split | rows |
|---|---|
{rows}{sources}
```json
{recipe}
```
"""
_PAIRS_CARD = """# Preference pairs with quality margins

Made with `mmpo`. Columns: see the data contract of mmpo; `quality_margin` says how much better the chosen reply is."""
_FEEDBACK_CARD = """# Graded feedback, one row a prompt

Made with `mmpo`: candidate replies and every grade that they were given."""


_SOURCES_CARD = """
Margins of different sources are on scales of their own unless a normalisation brings them together. γ auto is the γ at which the mean
target of a source's untied training pairs is .75; of all pairs it is {gamma}, at which their mean targets are those of the last column.

| source | weight | share of prompts | normalisation | prompts | pairs | ties | mean margin | γ auto | mean target |
|---|---|---|---|---|---|---|---|---|---|
"""
_OF_SOURCE = ("weight", "share", "normalisation", "prompts", "pairs", "ties", "mean_margin", "gamma_auto", "mean_target")


def sources_table(about: Mapping[str, Any]) -> str:
    """What is known of each source of several, for a card. about: `by_source` and `gamma_auto`, as the manifest has them."""
    rows = [[name, *(one[column] for column in _OF_SOURCE)] for name, one in about["by_source"].items()]
    return _SOURCES_CARD.format(gamma=_cell(about.get("gamma_auto"))) + "".join(
        f"| {' | '.join(map(_cell, row))} |\n" for row in rows
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def card(
    splits: Sequence[str],
    counts: Mapping[str, int],
    recipe: Mapping[str, Any],
    *,
    feedback: bool = False,
    sources: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of a dataset folder: a Hugging Face dataset card whose head lists the splits. sources: of `sources_table`, if any."""
    names = splits or SPLITS[:1]
    return CARD.format(
        files="".join(f"  - split: {'train' if feedback else name}\n    path: {name}/*.parquet\n" for name in names),
        about=_FEEDBACK_CARD if feedback else _PAIRS_CARD,
        rows="".join(f"| {name} | {counts.get(name, 0):,} |\n" for name in names),
        sources=sources_table(sources) if sources else "",
        recipe=json.dumps(recipe, ensure_ascii=True, indent=2, default=str),
    )


def made_of(folder: Path, files: Iterable[Path]) -> list[dict[str, str]]:
    """What metadata and manifest say of the folder that another is made of, under `inputs`: each file with its digest."""
    return [{"name": f"{folder.name}/{path.name}", "digest": digest(path)} for path in files]


def write_feedback(
    folder: Path, metadata: Mapping[str, Any], parts: Iterable[tuple[pa.Table, Sequence[Mapping[str, Any]]]]
) -> dict[str, FileDigest]:
    """Write the parts and rejects.parquet of a FEEDBACK folder from tables, each with the rejects that go along; the parts' digests."""
    writer = PartWriter(folder / "feedback", "part", metadata)
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(folder / "rejects.parquet", REJECTS, compression="zstd") as rejects:
        for table, rejected in parts:
            if rejected:
                rejects.write_table(pa.Table.from_pylist(list(rejected), REJECTS))
            waiting.append(table)
            if sum(part.nbytes for part in waiting) >= MAX_PART_BYTES:
                writer.write(pa.concat_tables(waiting).combine_chunks())
                waiting = []
    if waiting:
        writer.write(pa.concat_tables(waiting).combine_chunks())
    writer.close()
    return writer.digests


def describe(
    folder: Path,
    metadata: Mapping[str, Any],
    prompts: int,
    accounting: RowAccounting,
    digests: Mapping[str, FileDigest],
    **more: Any,
) -> None:
    """Write the README and the manifest of a FEEDBACK folder; metadata: its recipe and inputs; digests: the part writer's; more: of the
    manifest."""
    accounting.check()
    rows = {"feedback": prompts}
    (folder / "README.md").write_text(card(["feedback"], rows, metadata["recipe"], feedback=True), encoding="utf-8")
    values = {"kind": "feedback", **metadata, "prompts": prompts, "rows": rows, "counts": accounting.as_json(), **more}
    write_manifest(folder, values, digests)
