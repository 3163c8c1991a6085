"""FEEDBACK with calibrated graders in it: comparisons in people's units, their standard errors as `spread`, and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.annotate.agreement.margins import RaterMargins
from mmpo.annotate.calibrate.grader import Calibrated
from mmpo.pipeline.arrow import flat, narrow, offsets_of, with_added
from mmpo.pipeline.storage import RowAccounting, describe, made_of, name_of, read_manifest, replacing, split_files, write_feedback
from mmpo.pipeline.tables import COMPARISON

OUTSIDE = "larger than every margin that {onto} graded too"
"""The note of a grade that the map is stretched for."""
SLICE = 4096


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
        "inputs": [] if source is None else made_of(Path(source), split_files(Path(source), "feedback")),
    }  # fmt: skip
    rows = {one.grader.name + suffix: 0 for one in kept}
    accounting = RowAccounting()
    for one in kept:
        rows[one.grader.name + suffix] += len(one.grader.unit)
        accounting.count("calibrate", "grade", created=len(one.grader.unit), out=len(one.grader.unit))
    with replacing(out) as folder:
        slices = ((stored.slice(start, SLICE), ()) for start in range(0, stored.num_rows, SLICE))
        digests = write_feedback(folder, metadata, slices)
        write_page(summary, folder / "calibration.html")
        describe(folder, metadata, stored.num_rows, accounting, digests, calibration=_short(summary))
    return {"out": name_of(out), "page": name_of(out / "calibration.html"), "rows": rows, "replaced": replaced}


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
    column, place = flat(table["comparisons"]), table.schema.get_field_index("comparisons")
    names = pa.array([one.grader.name + suffix for one in kept], pa.string())
    again = np.asarray(pc.is_in(column.flatten().field("rater").cast(pa.string()), names)).astype(bool)
    start, rows = offsets_of(flat(table["completions"])), [margins.prompt[one.grader.unit] for one in kept]
    added = [_comparisons(one, margins, start[row], suffix) for one, row in zip(kept, rows, strict=True)]
    if added:
        joined = pa.concat_arrays(added).cast(column.type.value_type)
        column = with_added(column, joined, np.concatenate(rows), ~again).cast(column.type)
    return table.set_column(place, table.schema.field(place), column), int(again.sum())


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
        "note": pa.array(np.where(one.outside, OUTSIDE.format(**one.figures), ""), pa.string(), mask=~one.outside),
        "probabilities": pa.nulls(size, pa.list_(pa.float64())),
    }
    fields = [COMPARISON.field(i) for i in range(COMPARISON.num_fields)]
    return pa.StructArray.from_arrays([pa.array(columns[field.name]).cast(field.type) for field in fields], fields=fields)
