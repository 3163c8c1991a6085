"""What a build left out, by reason, with examples: from rejects.parquet, and from the manifest what is only counted."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import batches, on_disk, read_manifest
from mmpo.pipeline.tables import REJECTS, REPAIR

EXAMPLES = 3
REJECTS_NULLABLE = ("file", "row", "prompt_id", "evidence")


def rejects(dataset: Path, examples: int = EXAMPLES) -> dict[str, Any]:
    """{"reasons": {reason: {"unit", "stage", "count", "share", "examples": [{"file", "row", "details"}]}}}, the most frequent first.

    dataset: a folder that `mmpo build` wrote. count: how many; share: of all units of that kind that came to the stage, from 0 to 1, null
    where the manifest does not say. examples: the first ones; file and row (from 1) where it was read, null for what was left out later;
    details: why, a JSON object or null. A reason whose grades are counted without being kept has no examples. A reason that several units
    have is there once for each, after the first as "REASON (UNIT)". What has the stage `repair` was mended and kept. Raises UserError.
    """
    dataset = on_disk(dataset)
    found: dict[str, dict[str, Any]] = {}
    came: dict[str, int] = {}

    def entry_of(reason: str, unit: str, stage: str) -> tuple[str, dict[str, Any]]:
        name = reason if found.get(reason, {}).get("unit", unit) == unit else f"{reason} ({unit})"
        return name, found.setdefault(name, {"unit": unit, "stage": stage, "count": 0, "share": None, "examples": []})

    path = dataset / "rejects.parquet"
    known = {} if path.is_file() and not (dataset / "manifest.json").is_file() else read_manifest(dataset)
    try:
        for stage, units in known.get("counts", {}).items():
            for unit, counts in units.items():
                told = [(stage, counts["dropped"]), (REPAIR, counts.get("repaired", {}))]
                for told_of, reason, count in ((where, *one) for where, reasons in told for one in reasons.items()):
                    name, entry = entry_of(reason, unit, told_of)
                    entry["count"] += count
                    came[name] = came.get(name, 0) + counts["in"] + counts["created"]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{dataset / 'manifest.json'}: its counts are damaged; build {dataset} again") from error
    for reason, entry in found.items():
        entry["share"] = entry["count"] / came[reason] if came[reason] else None
    listed: dict[str, int] = {}
    try:
        for batch in batches([path] if path.is_file() else [], schema=REJECTS, nullable=REJECTS_NULLABLE):
            for (reason, unit), count in Counter(zip(batch["reason"].to_pylist(), batch["unit"].to_pylist())).items():
                same = pc.and_(pc.equal(batch["reason"], reason), pc.equal(batch["unit"], unit))
                rows = batch.filter(same).slice(0, max(examples, 1)).to_pylist()
                name, entry = entry_of(reason, unit, rows[0]["stage"])
                listed[name] = listed.get(name, 0) + count
                entry["examples"] += [_example(row) for row in rows[: examples - len(entry["examples"])]]
    except ValueError as error:
        raise UserError(
            f"{path}: can't be read as what a build left out ({str(error).splitlines()[0]}); build {dataset} again"
        ) from error
    for reason, count in listed.items():
        found[reason]["count"] = max(found[reason]["count"], count)
    return {"reasons": dict(sorted(found.items(), key=lambda item: (-item[1]["count"], item[0])))}


def _example(row: dict[str, Any]) -> dict[str, Any]:
    details = orjson.loads(row["evidence"]) if row["evidence"] else {}
    if row["prompt_id"]:
        details = {"prompt_id": row["prompt_id"], **details}
    return {"file": row["file"], "row": row["row"], "details": details or None}
