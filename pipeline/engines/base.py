"""What an engine is: the machines that stages run on. Stages are functions of arguments and of files, and know no engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mmpo.pipeline.engines.actors import Actors

SPILLED = ".spill"
"""How files end that are for other tasks alone; their names begin with the number of the shard whose task reads them, and a hyphen."""


class Runner(Protocol):
    """Runs tasks that read and write files below two folders, the output's and that of temporary files."""

    def __call__(self, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, shards: int = 0) -> Iterator[Any]:
        """Call `work(*arguments)` for each tuple of arguments and yield the results in order.

        Paths in arguments and results, where they lie in one of the folders, name the same files wherever a task runs: what it writes is
        there afterwards for this process, and for tasks whose arguments name it. Files of SPILLED, which tasks may write for so many
        `shards`, are there for tasks alone. Errors of `work` are raised here as they are.
        """
        ...

    def forget(self, paths: Iterable[Path]) -> None:
        """Remove files of SPILLED."""
        ...


class Engine(Protocol):
    """Machines, at hand while the engine is open. workers: tasks at a time, None: nobody said; memory: bytes of all machines, None: of this
    one; here: whether temporary files lie on this machine alone.
    """

    workers: int | None
    memory: int | None
    here: bool

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *error: object) -> None: ...

    def check(self, paths: Sequence[str]) -> None:
        """Raise UserError where a machine does not see one of these input files."""
        ...

    def running(self, workers: int, folder: Path, scratch: Path, memory: int = 0) -> AbstractContextManager[Runner]:
        """A runner of at most so many tasks at a time, each of so many bytes of memory. An error in the block ends them."""
        ...

    def actors(self, count: int | None = None) -> AbstractContextManager["Actors | None"]:
        """Places for so many processes that hold a model each, None: for as many as there are; None: this process is the only one."""
        ...

    def about(self) -> dict[str, Any]:
        """What the manifest says of it: its name, and of machines apart version, nodes and CPUs."""
        ...
