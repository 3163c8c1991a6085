"""The machine shared out among the workers of a build: how much of it each takes, refused early where it can't do it."""

import math
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.progress import in_bytes
from mmpo.pipeline.storage.spill import LEAST_BATCH_BYTES, SpillPlan

CHUNK_BYTES = PARTITION_BYTES = PARALLEL_FROM_BYTES = 8 << 20
SHARDS, UNITS_A_SHARD, MOST_SHARDS = 4, 64, 512
UNKNOWN_MACHINE = 4 << 30
PARENT, FIXED = 200 << 20, 400 << 20
"""Memory of the process that shares out the work, and of one that does it, whatever the size of its runs and groups: Python and packages,
a part of the input as objects, a batch of pairs."""
RUN_TIMES, GROUP_TIMES = 3, 6
"""How often rows are in memory at once while they are cut, and while they are merged and paired."""
LEAST_ROWS, GROUP_BYTES = 8 << 20, 64 << 20
LEAST_SPILL = 0.05
"""Of the input's text: spill files take so much at least, of texts that repeat much."""
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?)(i?)b?\s*", value.lower())
    if found is None:
        raise ValueError(f"{value!r} is no size; write 2GB or 512MiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS.get(found[2], 0))


Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(ge=1),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["2GB", "512MiB"]}]}),
]
"""A number of bytes, which may be written as 2GB or 512MiB."""


@dataclass(frozen=True)
class BuildPlan:
    """How much of an input is worked on at a time. All in bytes but the counts.

    size, text: of the input as it lies there, and about that of its text. memory: of all processes. shards, units (a shard): fixed by the
    input, as the dataset is; the rest goes by the memory and changes nothing of it: cells (a shard), task (of input), run and group (rows
    in memory that are spilled, or read back, together).
    """

    size: int
    text: int
    memory: int
    workers: int
    shards: int
    units: int
    cells: int
    task: int
    run: int
    group: int

    @property
    def each(self) -> int:
        """Memory that a process takes."""
        return FIXED + max(RUN_TIMES * self.run, GROUP_TIMES * self.group)

    def spill(self, folder: Path) -> SpillPlan:
        """What the stages need to know, with the folder of the spill files."""
        return SpillPlan(folder, self.shards, self.cells, self.run, self.group)

    def sentence(self, scratch: Path, free: int) -> str:
        """The plan in words, for before anything is read."""
        text = f" (about {in_bytes(self.text)} of text)" if self.text > self.size else ""
        shards = f"{self.shards:,} shard{'s' if self.shards > 1 else ''}"
        processes = f"{self.workers:,} process{'es' if self.workers > 1 else ''}"
        return (
            f"input {in_bytes(self.size)}{text}: {shards}, {processes}, memory up to {in_bytes(self.memory)}; temporary files of "
            f"{in_bytes(LEAST_SPILL * self.text)} to {in_bytes(self.text)} in {scratch}, where {in_bytes(free)} are free"
        )


def plan_build(
    size: int,
    text: int,
    chunks: int,
    workers: int | None,
    memory: int | None,
    there: int | None,
    partition_bytes: int,
    group_bytes: int = GROUP_BYTES,
) -> BuildPlan:
    """Shares out the memory. text: bytes of text in the input, about; workers, memory: as given, None: what the machine has, or what is
    there of other machines.

    Raises UserError where so much memory is too little for one process, or for as many as were asked for.
    """
    units = max(1, math.ceil(text / partition_bytes))
    shards = min(units, SHARDS + units // UNITS_A_SHARD, MOST_SHARDS)
    least = FIXED + max(RUN_TIMES, GROUP_TIMES) * LEAST_ROWS
    given, memory = memory, memory or max(there or machine_memory() // 2, PARENT + least)
    most = max(chunks, shards)
    wanted = min(workers or (os.cpu_count() or 1 if size >= PARALLEL_FROM_BYTES else 1), most)
    processes = wanted if workers else max(1, min(wanted, (memory - PARENT) // least))
    parent = PARENT if processes > 1 else 0
    if given and given < parent + processes * least:
        need = math.ceil((parent + processes * least) / 1e6)
        fewer = " With fewer --workers it is less." if processes > 1 else ""
        raise UserError(
            f"--memory {in_bytes(given)} is too little for a batch of pairs: "
            f"{f'{processes} processes need' if processes > 1 else 'a process needs'} {need} MB at least (--memory {need}MB).{fewer}"
        )
    free = max((memory - parent) // processes - FIXED, GROUP_TIMES * LEAST_ROWS)
    run, group = min(free // RUN_TIMES, group_bytes * 3 // 2), min(free // GROUP_TIMES, group_bytes)
    task = max(CHUNK_BYTES, min(run, text // (8 * processes)))
    cells = min(math.ceil(4 * text / group), min(run, task) // LEAST_BATCH_BYTES) // shards
    return BuildPlan(size, text, memory, processes, shards, math.ceil(units / shards), max(1, cells), task, run, group)


def machine_memory() -> int:
    """Bytes of memory of the machine, or of the control group that this process is confined to."""
    found = [UNKNOWN_MACHINE]
    with suppress(ValueError, OSError, AttributeError):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(ValueError, OSError):  # no such group, or "max"
            found.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(found)


def free_space(folder: Path) -> int:
    """Bytes that may still be written to the file system of a folder."""
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: float, what: str) -> None:
    """Raise UserError where the file system of the folder has not so many bytes left."""
    free = free_space(folder)
    if needed > free:
        raise UserError(
            f"the disk of {folder} is too small: {what} need about {in_bytes(needed)} more, and {in_bytes(free)} are free. Free some "
            "space, or name a folder for temporary files on another disk (--scratch); nothing was written"
        )
