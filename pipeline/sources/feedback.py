"""Our own FEEDBACK tables, as `build --feedback-only`, judges and people leave them; read whole, without a loop."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.builder import KINDS
from mmpo.pipeline.columns import large
from mmpo.pipeline.errors import UserError

__all__ = ["feedback_table"]


def feedback_table(table: pa.Table, file: str) -> pa.Table:
    """The table with 64-bit text offsets, after a check of what later stages rely on.

    Raises UserError: types that are not FEEDBACK's, null ids, indices outside the row's completions, grades that are
    no finite number or lie outside their scale, kinds that do not exist.
    """
    try:
        feedback = large(table.combine_chunks())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
        raise UserError(f"{file}: the columns do not have the types of FEEDBACK (docs/data-contract.md): {error}") from error
    if feedback["prompt_id"].null_count or feedback["prompt"].null_count:
        raise UserError(f"{file}: FEEDBACK rows without a prompt_id or prompt")
    completions = pc.fill_null(pc.list_value_length(feedback["completions"]), 0).to_numpy()
    _check(feedback["ratings"], completions, ("completion",), "score", file)
    _check(feedback["comparisons"], completions, ("first", "second"), "gap", file)
    return feedback


def _check(column: pa.ChunkedArray, completions: np.ndarray, indices: tuple[str, ...], value: str, file: str) -> None:
    """Raise UserError at the first grade that breaks a rule, naming its row (1-based)."""
    rows = pc.list_parent_indices(column).to_numpy()
    grades = pc.list_flatten(column)
    if not len(grades):
        return

    def numbers(name: str) -> np.ndarray:
        return pc.cast(pc.struct_field(grades, name), pa.float64()).to_numpy().astype(float)

    bad = {
        f"its {value} is no finite number": ~np.isfinite(numbers(value)),
        f"its kind is none of {', '.join(KINDS)}": ~pc.is_in(pc.struct_field(grades, "kind"), value_set=pa.array(KINDS)).to_numpy(
            zero_copy_only=False
        ),
        "it has no rater or aspect": pc.or_(
            pc.is_null(pc.struct_field(grades, "rater")), pc.is_null(pc.struct_field(grades, "aspect"))
        ).to_numpy(zero_copy_only=False),
    }
    for name in indices:
        index = numbers(name)
        bad[f"{name} is none of the row's completions"] = ~((index >= 0) & (index < completions[rows]))
    if value == "score":
        bad["its score lies outside low..high"] = (numbers(value) < numbers("low")) | (numbers(value) > numbers("high"))
    else:
        bad["its gap is larger than limit"] = np.abs(numbers(value)) > numbers("limit")
        bad["it compares a completion with itself"] = numbers("first") == numbers("second")
    for told, where in bad.items():
        if where.any():
            raise UserError(f"{file}: row {rows[int(np.argmax(where))] + 1}: a grade can't be used: {told}")
