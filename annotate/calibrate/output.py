"""FEEDBACK with calibrated graders in it: comparisons in people's units, their standard errors as `spread`, and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.annotate.agreement.margins import RaterMargins
from mmpo.annotate.calibrate.grader import Calibrated
from mmpo.annotate.rows import describe
from mmpo.pipeline.arrow import flat, lists, narrow, offsets_of, parents
from mmpo.pipeline.storage import PartWriter, RowAccounting, digest, read_manifest, replacing, split_files
from mmpo.pipeline.tables import COMPARISON, REJECTS

OUTSIDE = "larger than every margin that people graded too"
"""The note of a grade that the map is stretched for."""
MAX_PART_BYTES = 64 << 20


def write_calibrated(
    table: pa.Table, margins: RaterMargins, kept: Sequence[Calibrated], summary: Mapping[str, Any], recipe: Mapping[str, Any], out: Path,
    source: str | Path | None, suffix: str,
) -> dict[str, Any]:  # fmt: skip
    """Write the folder `out`; table: that of the margins; what these graders' earlier calibrations left there is replaced. Returns {"out",
    "page", "rows", "replaced"}."""
    from mmpo.annotate.calibrate.page import write_page

    with_grades, replaced = _with_comparisons(table, margins, kept, suffix)
    stored = narrow(with_grades)
    before = read_manifest(Path(source)) if source is not None else {}
    metadata = {
        "recipe": {"calibrate": {key: value for key, value in recipe.items() if key != "out"}, "feedback": before.get("recipe")},
        "inputs": [] if source is None else [
            {"name": f"{Path(source).name}/{path.name}", "digest": digest(path)} for path in split_files(Path(source), "feedback")
        ],
    }  # fmt: skip
    rows = {one.grader.name + suffix: 0 for one in kept}
    accounting = RowAccounting()
    for one in kept:
        rows[one.grader.name + suffix] += len(one.grader.unit)
        accounting.count("calibrate", "grade", created=len(one.grader.unit), out=len(one.grader.unit))
    with replacing(out) as folder:
        writer = PartWriter(folder / "feedback", "part", metadata)
        step = max(1, int(stored.num_rows * MAX_PART_BYTES / max(stored.nbytes, 1)))
        for start in range(0, stored.num_rows, step):
            writer.write(stored.slice(start, step))
        writer.close()
        pq.write_table(REJECTS.empty_table(), folder / "rejects.parquet")
        write_page(summary, folder / "calibration.html")
        describe(folder, metadata, stored.num_rows, accounting, writer.digests, calibration=_short(summary))
    return {"out": str(out), "page": str(out / "calibration.html"), "rows": rows, "replaced": replaced}


def _short(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of each grader."""
    names = (
        "pairs",
        "human_pairs",
        "method",
        "cross_entropy",
        "ece",
        "scale",
        "bias",
        "knows",
        "gamma",
        "margin_se",
        "outside",
        "written",
    )
    return {name: {key: figures[key] for key in names} for name, figures in summary["graders"].items()}


def _with_comparisons(table: pa.Table, margins: RaterMargins, kept: Sequence[Calibrated], suffix: str) -> tuple[pa.Table, int]:
    column = flat(table["comparisons"])
    old, old_rows = column.flatten(), parents(offsets_of(column))
    names = pa.array([one.grader.name + suffix for one in kept], pa.string())
    stay = pc.invert(pc.is_in(old.field("rater").cast(pa.string()), names)) if len(old) else pa.array([], pa.bool_())
    start = offsets_of(flat(table["completions"]))
    parts, rows = [old.filter(stay)], [old_rows[np.asarray(stay)]]
    for one in kept:
        row = margins.prompt[one.grader.unit]
        parts.append(_comparisons(one, margins, start[row], suffix).cast(old.type))
        rows.append(row)
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    values = pa.concat_arrays(parts).take(pa.array(order))
    new = lists(np.searchsorted(row[order], np.arange(table.num_rows)), values)
    place = table.schema.get_field_index("comparisons")
    replaced = int(len(old) - pc.sum(stay).as_py()) if len(old) else 0
    return table.set_column(place, table.schema.field(place), new.cast(column.type)), replaced


def _comparisons(one: Calibrated, margins: RaterMargins, start: np.ndarray, suffix: str) -> pa.StructArray:
    """One per pair, the completion of the smaller id called the first; a margin of the map is in no order, since all are odd."""
    size, grader = len(one.grader.unit), one.grader
    limit = one.sample.limit
    columns = {
        "first": (margins.low[grader.unit] - start).astype(np.int32),
        "second": (margins.high[grader.unit] - start).astype(np.int32),
        "rater": pa.repeat(pa.scalar(grader.name + suffix), size),
        "kind": pa.repeat(pa.scalar(grader.kind), size),
        "aspect": pa.repeat(pa.scalar(grader.aspect), size),
        "gap": one.expected,
        "limit": pa.nulls(size, pa.float64()) if limit is None else np.full(size, limit),
        "spread": one.errors.spread,
        "note": pa.array(np.where(one.outside, OUTSIDE, ""), pa.string(), mask=~one.outside),
        "probabilities": pa.nulls(size, pa.list_(pa.float64())),
    }
    fields = [COMPARISON.field(i) for i in range(COMPARISON.num_fields)]
    return pa.StructArray.from_arrays([pa.array(columns[field.name]).cast(field.type) for field in fields], fields=fields)
