"""The FEEDBACK that a dataset of pairs was made of, read again from the inputs that its manifest names, where they are as they were."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.api import read_feedback
from mmpo.pipeline.arrow import UNREADABLE
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import SourceOptions
from mmpo.pipeline.storage import digest, part_files, read_manifest

SMALL_BYTES, MOST_BYTES = 32 << 20, 512 << 20
"""Of inputs: so much is read again in any case, so much where raters, orders or aspects can be compared."""
GIVE = "`mmpo build … --feedback-only --out FEEDBACK` keeps what raters said, and `mmpo report --feedback FEEDBACK` shows it"


def feedback_of(dataset: str | Path) -> tuple[pa.Table | None, str]:
    """The FEEDBACK of a folder of pairs and "", or None and why there is none, in words.

    Inputs are read again where all are files on this machine with the digests in the manifest, of one source, and small, or of up to
    MOST_BYTES where there is something to compare: pairs of several raters, comparisons, or several aspects in the score.
    """
    folder = Path(dataset)
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return None, str(error)
    recipe, inputs = manifest.get("recipe") or {}, manifest.get("inputs") or []
    if not inputs or not recipe.get("format"):
        why = "they were made of several sources" if recipe.get("sources") else "the manifest names no inputs"
        return None, f"What single raters said is not in a folder of pairs, and is not read again: {why}. {GIVE}."
    try:
        paths = [Path(entry["name"]) for entry in inputs]
        size = sum(path.stat().st_size for path in paths)
        limit = MOST_BYTES if _comparable(folder, manifest) else SMALL_BYTES
        if size > limit:
            return (
                None,
                f"What single raters said is not in a folder of pairs; its inputs, {size >> 20} MiB, are not read again for it. {GIVE}.",
            )
        changed = [str(path) for path, entry in zip(paths, inputs, strict=True) if digest(path) != entry["digest"]]
        if changed:
            return None, f"What single raters said is not in a folder of pairs, and {changed[0]} has changed since. {GIVE}."
        known = {field.name for field in fields(SourceOptions)}
        chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in recipe.items() if name in known}
        return read_feedback(paths, recipe["format"], max_rejects=1.0, **chosen), ""
    except OSError:
        return None, f"What single raters said is not in a folder of pairs, and its inputs are no longer here. {GIVE}."
    except UserError as error:
        return None, f"What single raters said is not in a folder of pairs, and its inputs can't be read again: {error}. {GIVE}."


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
