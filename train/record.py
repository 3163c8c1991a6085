"""`mmpo.json` in a model's folder, which says how the model was made. Training writes it, evaluation reads it."""

import json
from pathlib import Path
from typing import Any

RECORD = "mmpo.json"


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record of a model folder; None where there is none or it is not ours."""
    try:
        record = json.loads((Path(path) / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "kind" in record else None
