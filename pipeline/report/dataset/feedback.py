"""The FEEDBACK that a dataset of pairs was made of, read again from the inputs that its manifest names, where they are as they were."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.api import read_feedback
from mmpo.pipeline.arrow import UNREADABLE, flat, large, lists, offsets_of, with_fields
from mmpo.pipeline.build import BuildOptions, sources_of
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import fields_of, options_from, shared
from mmpo.pipeline.sources import SourceOptions
from mmpo.pipeline.storage import digest, on_disk, part_files, read_manifest

SMALL_BYTES, MOST_BYTES = 32 << 20, 512 << 20
"""Of inputs: so much is read again in any case, so much where raters, orders or aspects can be compared."""
APART = "What single raters said is not in a folder of pairs"
GIVE = "`mmpo build … --feedback-only --out FEEDBACK` keeps what raters said, and `mmpo report --feedback FEEDBACK` shows it"


def feedback_of(dataset: str | Path) -> tuple[pa.Table | None, str]:
    """The FEEDBACK of a folder of pairs and "", or None and why there is none, in words. Of several sources raters are called
    "source: rater", since nobody says that they are the same.

    Inputs are read again where all are files or objects with the digests in the manifest, and small, or of up to MOST_BYTES
    where there is something to compare: pairs of several raters, comparisons, or several aspects in the score.
    """
    folder = on_disk(dataset)
    try:
        manifest = read_manifest(folder)
        inputs = manifest.get("inputs") or []
        if not inputs or not manifest.get("recipe"):
            return None, f"{APART}, and is not read again: the manifest names no inputs. {GIVE}."
        size = sum(int(entry["bytes"]) if entry.get("etag") else Path(entry["name"]).stat().st_size for entry in inputs)
        if size > (MOST_BYTES if _comparable(folder, manifest) else SMALL_BYTES):
            return None, f"{APART}; its inputs, {size >> 20} MiB, are not read again for it. {GIVE}."
        changed = [entry["name"] for entry in inputs if digest(on_disk(entry["name"])) != entry["digest"]]
        if changed:
            return None, f"{APART}, and {changed[0]} has changed since. {GIVE}."
        return _read(manifest["recipe"], inputs), ""
    except OSError:
        return None, f"{APART}, and its inputs are no longer here. {GIVE}."
    except UserError as error:
        return None, f"{APART}, and its inputs can't be read again: {error}. {GIVE}."


def _read(recipe: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> pa.Table:
    known = fields_of(BuildOptions)
    options = options_from(BuildOptions, {name: value for name, value in recipe.items() if name in known})
    tables = []
    for source, own in [*sources_of(options)] or [(None, options)]:
        paths = [entry["name"] for entry in inputs if source is None or entry.get("source") == source.name]
        table = large(read_feedback(paths, own.format, max_rejects=1.0, **shared(own, SourceOptions)))
        tables.append(table if source is None else _called(table, source.name))
    return pa.concat_tables(tables)


def _called(table: pa.Table, source: str) -> pa.Table:
    """FEEDBACK with the source before its raters' names."""
    for name in ("ratings", "comparisons"):
        column = flat(table[name])
        rows = column.flatten()
        raters = pc.binary_join_element_wise(source, rows.field("rater").cast(pa.string()), ": ")
        renamed = lists(offsets_of(column)[:-1], with_fields(rows, {"rater": raters}))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), renamed)
    return table


def _comparable(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether raters, orders or aspects can be compared, by the manifest and the statistics in the parts' footers."""
    if manifest.get("evidence") == "comparisons" or len(manifest.get("score") or {}) > 1:
        return True
    try:
        for path in (path for paths in part_files(folder).values() for path in paths):
            about = pq.read_metadata(path)
            at = next(i for i in range(about.num_columns) if about.schema.column(i).path == "raters")
            for group in range(about.num_row_groups):
                found = about.row_group(group).column(at).statistics
                if found is not None and found.has_min_max and found.max > 1:
                    return True
    except (*UNREADABLE, StopIteration):
        return False  # which reading the pairs will say
    return False
