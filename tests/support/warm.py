"""Processes that are forked from one which has imported already what they need. One that begins from nothing imports for longer than most
tests do anything in it.
"""

import atexit
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

BEGIN = """
import sys
sys.path.insert(0, sys.argv[1])
from warm import run, serve
code = serve(int(sys.argv[2]), sys.argv[3:])
del sys.path[0]
run(code, globals())
"""
AROUND = dict(os.environ)
"""The environment, before any test has changed it."""
AT_IMPORT = re.compile(
    "(PYTHON(?!UNBUFFERED)|HF_|HUGGINGFACE|TRANSFORMERS|OMP_|MKL_|ARROW_|XDG_|LC_|LANG|HOME|TMPDIR|COLUMNS|LINES|TERM|NO_COLOR|FORCE_)"
)
"""How names begin that are read while modules are imported; all others are read when they are needed."""
MOST = 1 << 17
"""Bytes of a request: code, arguments, environment."""


def serve(own: int, imported: Sequence[str]) -> str:
    """In the process that imports: fork one for each request. Returns in these alone, with the code that it shall run; its arguments,
    environment, folder and standard streams are in place then. Ends when nobody can ask any more.
    """
    asked = socket.socket(fileno=own)
    for name in imported:
        import_module(name)
    gc.freeze()  # a search for cycles among a million imported objects takes longer than most commands, and each has one at its end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    while True:
        message, handed, *_ = socket.recv_fds(asked, MOST, 4)
        if not message:
            os._exit(0)
        if os.fork():
            for one in handed:
                os.close(one)
            continue
        asked.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        *streams, told = handed
        if not (child := os.fork()):
            os.close(told)
            return _settle(json.loads(message), streams)
        for one in streams:
            os.close(one)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with socket.socket(fileno=told) as answer:
            answer.send(str(child).encode())
            answer.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
        os._exit(0)


def _settle(request: Mapping[str, Any], streams: Sequence[int]) -> str:
    for at, one in enumerate(streams):
        os.dup2(one, at)
        os.close(one)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["-c", *request["words"]]
    return request["code"]


def run(code: str, names: dict[str, Any]) -> None:
    """Run the code as `python -c` does, and end the process at once: to take apart what was imported, as Python does at its end, touches
    and so copies all of it, which is five times the work of a small command."""
    status: Any = 0
    try:
        exec(compile(code, "<string>", "exec"), names)
    except SystemExit as error:
        status = error.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()  # type: ignore[attr-defined]  # threads are waited for, then what was registered is done, as ever
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = 120
    os._exit(status & 0xFF)


class Forked:
    """A process as subprocess.Popen with text and pipes has it: what the tests use of that."""

    def __init__(self, args: Sequence[str], answer: socket.socket, stdin: Any, stdout: Any, stderr: Any) -> None:
        self.args, self.stdin, self.stdout, self.stderr = args, stdin, stdout, stderr
        self._answer = answer
        self.pid, self.returncode = int(answer.recv(32)), None

    def poll(self) -> int | None:
        """The exit status, below 0 the signal that ended it; None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended. Raises subprocess.TimeoutExpired."""
        if (status := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; what it said. Raises subprocess.TimeoutExpired."""
        self.stdin.close()
        said: list[str] = ["", ""]

        def read(at: int, stream: Any) -> None:
            said[at] = stream.read()

        threads = [threading.Thread(target=read, args=each, daemon=True) for each in enumerate((self.stdout, self.stderr))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        for stream in (self.stdout, self.stderr):
            stream.close()
        self.wait(timeout)
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()
        self.wait()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._answer.settimeout(timeout)
            try:
                self.returncode = int(self._answer.recv(32))
            except (TimeoutError, BlockingIOError):
                return None
            self._answer.close()
        return self.returncode


class Warm:
    """A process that has imported these modules, with this in its environment from the beginning; started when it is first asked."""

    def __init__(self, *imported: str, **environment: str) -> None:
        self.imported, self.environment = imported, environment
        self._asked: socket.socket | None = None

    def differs(self, env: Mapping[str, str]) -> set[str]:
        """The names that are read at imports in which an environment differs from the one that was there."""
        return {name for name in AROUND.keys() | env.keys() if AT_IMPORT.match(name) and AROUND.get(name) != env.get(name)}

    def begin(self, code: str, words: Sequence[str], env: Mapping[str, str], cwd: str | None = None) -> Forked:
        """As `python -c CODE WORDS`."""
        self._asked = self._asked or self._started()
        answer, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (its_in, stdin), (stdout, its_out), (stderr, its_err) = os.pipe(), os.pipe(), os.pipe()
        request = {"code": code, "words": words, "env": dict(env), "cwd": str(cwd or os.getcwd())}
        handed = [its_in, its_out, its_err, told.detach()]
        socket.send_fds(self._asked, [json.dumps(request).encode()], handed)
        for one in handed:
            os.close(one)
        streams = (os.fdopen(one, mode, encoding="utf-8") for one, mode in ((stdin, "w"), (stdout, "r"), (stderr, "r")))
        return Forked(["-c", code, *words], answer, *streams)

    def _started(self) -> socket.socket:
        asked, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-c", BEGIN, os.path.dirname(__file__), str(own.fileno()), *self.imported]
        settings: dict[str, Any] = {"pass_fds": [own.fileno()], "stdin": subprocess.DEVNULL}
        settings["env"] = {**AROUND, **self.environment, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(words, **settings)
        own.close()
        atexit.register(process.wait)
        atexit.register(asked.close)  # before it waits
        return asked


_DATA = ("mmpo.cli.main", "mmpo.annotate.judge", "mmpo.annotate.mt_bench", "mmpo.annotate.generate", "mmpo.annotate.agreement")
COMMANDS = Warm(*_DATA, "mmpo.annotate.argilla", "openai.resources.chat", "httpx", "jinja2.sandbox")
ARGILLA = Warm("mmpo.cli.main", "mmpo.annotate.argilla", "argilla")
JUDGES = Warm("openai_app")
"""The server of tests, which is no command."""
TRAINING = Warm(
    *("torch", "transformers", "peft", "accelerate", "mmpo.cli.main", "mmpo.train.training.run", "mmpo.train.training.trainer"),
    OMP_NUM_THREADS="1",
    GLOO_SOCKET_IFNAME="lo",
    TORCH_CPP_LOG_LEVEL="ERROR",
    PYTHONWARNINGS="ignore::FutureWarning",
)
