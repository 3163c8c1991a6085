"""What a look at a dataset folder found: how often each rule is broken, where first, and figures that several rules need."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import UNREADABLE
from mmpo.pipeline.contract import misfits
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import part_schema
from mmpo.pipeline.storage.dataset import manifest_files
from mmpo.pipeline.storage.parts import about_part, cannot_read, row_groups
from mmpo.pipeline.tables import SCHEMA_VERSION, keys_of, with_keys

RELEASED_BYTES = 32 << 20


@dataclass
class Findings:
    """Counts of rows (prompts, files) that break a rule, by rule, and the place and words of the first. unknown: rules that could not be
    looked at, and why. figures: numbers that outcomes are made of.
    """

    folder: Path
    manifest: dict[str, Any]
    gamma: float | None = None
    broken: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    pairs_of: Counter[str] = field(default_factory=Counter)
    """Pairs by source, of a dataset that mixes several."""
    largest: dict[str, float] = field(default_factory=dict)
    """Prompt id → its largest margin, of the two prompts with the largest."""
    unread: bool = False
    """Whether there are parts that could not be looked at, so that figures of all rows are not known."""
    place: tuple[str, int] = ("", 0)
    """The part at hand, and the rows of it that were looked at before the batch at hand."""
    watch: Callable[[str, Path, int, pa.RecordBatch], None] | None = None
    """Called with rows of pairs as they are read, before they are looked at: split, part, rows of it before, rows."""
    unreleased: int = 0
    """Bytes of row groups read since memory was given back to the system, which would have to be given anew for every small one."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe in the manifest, {} where it has none."""
        return self.manifest.get("recipe") or {}

    @property
    def mixture(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each source, where several are mixed, else {}."""
        return self.manifest.get("mixture") or {}

    def found(self, rule: str, mask: np.ndarray, words: str = "", rows: np.ndarray | None = None) -> None:
        """Count the rows of the batch at hand that break a rule. rows: the batch's rows that the mask is about, unless all of them."""
        if not mask.any():
            return
        at = int(np.argmax(mask))
        part, before = self.place
        self.fault(
            rule, f"{part}, row {before + (at if rows is None else int(rows[at])) + 1}{words and ': ' + words}", int(mask.sum())
        )

    def fault(self, rule: str, where: str, count: int = 1) -> None:
        """Count what breaks a rule; the first is named in the message."""
        self.broken[rule] += count
        self.first.setdefault(rule, where)

    def parts(self, split: str) -> list[Path]:
        """The parts of a split that the manifest names; those that are gone, and those that it does not name, are faults."""
        here = {f"{split}/{path.name}": path for path in sorted((self.folder / split).glob("*.parquet"))}
        files = {name for name in manifest_files(self.manifest) if name.startswith(f"{split}/")}
        for name in sorted(files - here.keys()):
            self.fault("parts", f"{name} is gone")
            self.unread = True
        for name in sorted(here.keys() - files):
            self.fault("parts", f"{name}: its manifest does not name it")
        return [path for name, path in here.items() if name in files]

    def batches(self, split: str, path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows of a part, a row group at a time; nothing of a part that can't be read or has other columns, which is a fault.

        Where few texts stand in many rows they come as dictionaries: each is there once.
        """
        name = f"{split}/{path.name}"
        try:
            given = part_schema(path)
        except UserError as error:
            text = str(error)
            self.fault("metadata" if "metadata" in text or "schema version" in text else "parts", text)
            self.unread = True
            return
        schema = with_keys(schema, keys_of(given))
        if not self._columns(name, given, schema):
            self.unread = True
            return
        self.place = (name, 0)
        try:
            for size, group in row_groups(path):
                for batch in group:
                    batch.validate(full=True)
                    yield batch.select(schema.names)
                    self.rows[split] += batch.num_rows
                    self.place = (name, self.place[1] + batch.num_rows)
                self.unreleased += size
                if self.unreleased >= RELEASED_BYTES:  # else what row groups of many sizes left adds up
                    pa.default_memory_pool().release_unused()
                    self.unreleased = 0
        except UNREADABLE as error:
            self.fault("parts", str(cannot_read(path, error)))
            self.unread = True

    def _columns(self, name: str, given: pa.Schema, wanted: pa.Schema) -> bool:
        """Whether the part has the table's columns in the table's types; no others may be there."""
        missing = [column for column in wanted.names if column not in given.names]
        wrong = misfits(given, wanted)
        if _version(given) == SCHEMA_VERSION:  # what an older version lacks is null
            wrong += [field.name for field in wanted if field.name in given.names and given.field(field.name).type != field.type]
        others = [column for column in given.names if column not in wanted.names]
        if missing:
            self.fault("schema", f"{name} lacks the columns {', '.join(missing)}")
        for column in dict.fromkeys(wrong):
            self.fault("schema", f"{name}: {column} is of type {given.field(column).type}")
        if others:
            trap = (
                "; TRL's RewardTrainer takes `margin` for Llama 2's additive margin, another objective"
                if "margin" in others
                else ""
            )
            self.fault("other columns", f"{name}: {', '.join(others)}{trap}", len(others))
        return not missing and not wrong


def _version(schema: pa.Schema) -> object:
    return about_part(schema, "").get("schema_version", SCHEMA_VERSION)
