"""Which grades a build uses: ratings or comparisons, one set of them, narrowed by kind, rater and aspect."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, lists, offsets_of, parents
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades.statistics import GradeGroup, GradeStatistics

EVIDENCE = {
    "auto": "ratings if there are any, else comparisons",
    "ratings": "scores of completions",
    "comparisons": "gaps between two completions",
}
"""What `--from` may be, and what it means."""


def choose_evidence(
    statistics: GradeStatistics,
    evidence: str,
    *,
    kinds: Sequence[str] | None = None,
    raters: Sequence[str] | None = None,
    aspects: Sequence[str] | None = None,
) -> tuple[str, list[GradeGroup]]:
    """ "ratings" or "comparisons", and the groups that the build uses.

    Raises UserError where the choice names a kind, rater or aspect that no grade has, or leaves nothing.
    """
    if evidence not in EVIDENCE:
        raise unknown_name("evidence (--from)", evidence, EVIDENCE)
    table = evidence if evidence != "auto" else ("ratings" if statistics.of("ratings") else "comparisons")
    groups = statistics.of(table)
    if not groups:
        other = "comparisons" if table == "ratings" else "ratings"
        hint = f"; it has {other}: use --from {other}" if statistics.of(other) else ""
        raise UserError(f"the input holds no {table}{hint}" if evidence != "auto" else "the input holds no grades")
    wanted = {name: values for name, values in (("kind", kinds), ("rater", raters), ("aspect", aspects)) if values}
    for name, values in wanted.items():
        known = sorted({getattr(group, name) for group in groups})
        for value in values:
            if value not in known:
                raise unknown_name(f"--{name}", value, known[:40])
    chosen = [group for group in groups if all(getattr(group, name) in values for name, values in wanted.items())]
    if not chosen:
        raise UserError("no grade has the chosen kind, rater and aspect together; drop one of --kind, --rater, --aspect")
    return table, chosen


def select_grades(
    table: pa.Table,
    name: str,
    *,
    kinds: Iterable[str] | None = None,
    raters: Iterable[str] | None = None,
    aspects: Iterable[str] | None = None,
) -> tuple[pa.Table, int]:
    """The FEEDBACK table with only the chosen grades in column `name`, and how many were left out."""
    filters = [(key, list(values)) for key, values in (("kind", kinds), ("rater", raters), ("aspect", aspects)) if values]
    if not filters:
        return table, 0
    column = flat(table[name])
    grades = column.flatten()
    keep = np.ones(len(grades), dtype=bool)
    for key, values in filters:
        keep &= np.asarray(pc.is_in(grades.field(key), value_set=pa.array(values, pa.string())))
    row = parents(offsets_of(column))[keep]
    kept = lists(np.searchsorted(row, np.arange(table.num_rows)), grades.filter(pa.array(keep)))
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), kept), int((~keep).sum())
