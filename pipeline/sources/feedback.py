"""Our own FEEDBACK tables, as `build --feedback-only`, judges and people leave them; read whole, without a loop."""

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import large
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources.builder import KINDS, LARGEST

MOST_MASS = 1.01
"""What rounded probabilities may sum to."""


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
    completions = np.nan_to_num(feedback["completions"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False))
    _check(feedback["ratings"].combine_chunks(), completions, ("completion",), "score", file)
    _check(feedback["comparisons"].combine_chunks(), completions, ("first", "second"), "gap", file)
    return feedback


def _check(column: pa.ListArray, completions: np.ndarray, indices: tuple[str, ...], value: str, file: str) -> None:
    """Raise UserError at the first grade that breaks a rule, naming its row (1-based)."""
    rows = column.value_parent_indices().to_numpy()
    grades = column.flatten()
    if not len(grades):
        return
    texts = {name: grades.field(name) for name in ("kind", "rater", "aspect")}
    numbers = {
        name: grades.field(name).to_numpy(zero_copy_only=False).astype(float)
        for name in (*indices, value, *(("low", "high") if value == "score" else ("limit",)))
    }
    known = np.isin(texts["kind"].to_numpy(zero_copy_only=False).astype(str), KINDS)
    nameless = texts["rater"].is_null().to_numpy(zero_copy_only=False) | texts["aspect"].is_null().to_numpy(zero_copy_only=False)
    bad = {
        f"its {value} is no finite number up to {LARGEST:g}": ~(np.abs(numbers[value]) <= LARGEST),
        f"its kind is none of {', '.join(KINDS)}": ~known,
        "it has no rater or aspect": nameless,
    }
    for name in indices:
        bad[f"{name} is none of the row's completions"] = ~((numbers[name] >= 0) & (numbers[name] < completions[rows]))
    if value == "score":
        outside = (numbers["score"] < numbers["low"]) | (numbers["score"] > numbers["high"])
        bad["its score lies outside low..high"] = outside
    else:
        bad["its gap is larger than limit"] = np.abs(numbers["gap"]) > numbers["limit"]
        bad["it compares a completion with itself"] = numbers["first"] == numbers["second"]
    spread = grades.field("spread").fill_null(0.0).to_numpy(zero_copy_only=False)
    bad["its spread is no finite number of at least 0"] = ~(np.isfinite(spread) & (spread >= 0))
    bad["its probabilities are no shares that sum to at most 1"] = _impossible(grades.field("probabilities"))
    for told, where in bad.items():
        if where.any():
            raise UserError(f"{file}: row {rows[int(np.argmax(where))] + 1}: a grade can't be used: {told}")


def _impossible(probabilities: pa.ListArray) -> np.ndarray:
    """Which lists hold what is no probability, or sum to more than 1 (a hundredth is forgiven), shape (grades,)."""
    bad = np.zeros(len(probabilities), dtype=bool)
    if probabilities.null_count < len(probabilities):
        values, rows = probabilities.flatten().to_numpy(zero_copy_only=False), probabilities.value_parent_indices().to_numpy()
        sums = np.bincount(rows, np.nan_to_num(values, nan=np.inf), len(bad))
        bad[rows[~(values >= 0)]] = True
        bad |= sums > MOST_MASS
    return bad
