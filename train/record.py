"""`mmpo.json` in a model's folder, which says how the model was made. Training writes it, evaluation reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpo.train.objective import parse_terms, reads_targets, write_terms

RECORD = "mmpo.json"


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record of a model folder; None where there is none or it is not ours."""
    try:
        record = json.loads((Path(path) / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def trained_on(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a model of ours was trained on: {"loss", "loss_options", "target", "gamma", "control"}, from its record; None without one.

    target, gamma: None where the loss reads no target. control: of CONTROLS, None for a model that is none.
    """
    if not record or "options" not in record:
        return None
    options = record["options"]
    terms = parse_terms(options.get("loss", "mmpo"))
    soft = reads_targets(terms)
    return {
        "loss": write_terms(terms),
        "loss_options": options.get("loss_options") or {},
        "target": options.get("target", "plain") if soft else None,
        "gamma": record.get("gamma") if soft and options.get("target") != "levels" else None,
        "control": options.get("control"),
    }
