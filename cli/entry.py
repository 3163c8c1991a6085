"""How a command's process begins and ends: nothing large is imported before Ctrl-C and SIGTERM end it with one line and clean up."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
from importlib import import_module
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143
_SAME_STOP_SECONDS = 1.0
"""`timeout` and others send SIGTERM to the process and to its group."""
_terminated_at: list[float] = []


def main() -> None:
    """Run the command line of this process and leave with its exit status. Nothing that is imported is garbage, and nothing at the end
    needs to be found: searches for cycles of objects would be a fifth of a small command, and three seconds of one that trains."""
    gc.disable()  # until `run` has imported the command
    atexit.register(gc.freeze)
    _handle_sigterm()
    try:
        if "_MMPO_COMPLETE" in os.environ and (said := import_module("mmpo.cli.completion").answer()) is not None:
            print(said)
            return
        commands = import_module("mmpo.cli.main")  # here: Ctrl-C while it is imported is an interrupt as any other
        commands.leave_pandas_out(sys.argv[1:])
        status = commands.run(sys.argv[1:])
    except BaseException as error:
        if not was_interrupted(error):
            raise
        status = say_interrupted()
    if status in (INTERRUPTED, TERMINATED) and threading.active_count() > 1:
        sys.stdout.flush()  # a transfer that hangs in a thread would hold Python back for minutes
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind an error: a pool of processes interrupted while it starts raises RuntimeError."""
    if _terminated_at and isinstance(error, Exception):
        return True
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def say_interrupted() -> int:
    """The one line that says by what the command was ended, and the exit status of that."""
    print("terminated" if _terminated_at else "interrupted", file=sys.stderr)
    return TERMINATED if _terminated_at else INTERRUPTED


def _handle_sigterm() -> None:
    """SIGTERM cleans up as Ctrl-C does. It is left alone where the caller has it ignored, and in processes of a launcher, which may wait
    for one another and end all of them.
    """
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        again = bool(_terminated_at) and time.monotonic() - _terminated_at[0] > _SAME_STOP_SECONDS
        if again or os.getpid() != process:  # a worker that was forked off cleans nothing up
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if _terminated_at:
            return
        _terminated_at.append(time.monotonic())
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)  # whoever handles or delays Ctrl-C does so with this
        else:  # ignored, as it is in the background of a script
            raise KeyboardInterrupt

    if "WORLD_SIZE" not in os.environ and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
