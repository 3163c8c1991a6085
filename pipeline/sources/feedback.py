"""Our own FEEDBACK tables, as `build --feedback-only`, judges and people leave them; read whole, without a loop."""

import pyarrow as pa

from mmpo.pipeline.arrow import UNREADABLE, large
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.parts import about_part, check_columns, refuse_faults
from mmpo.pipeline.tables import FEEDBACK


def feedback_table(table: pa.Table, file: str) -> pa.Table:
    """The table with 64-bit text offsets, after a check of what later stages rely on.

    Raises UserError: damaged metadata or another schema version, types that are not FEEDBACK's, nulls where values are needed, and
    grades that break a rule (`contract.feedback_faults`).
    """
    about_part(table.schema, file)
    check_columns(table.schema, FEEDBACK, file)
    try:
        feedback = large(table.combine_chunks())
    except UNREADABLE as error:
        raise UserError(f"{file}: the columns do not have the types of FEEDBACK (docs/data-contract.md): {error}") from error
    refuse_faults(feedback, file, grades=True)
    return feedback
