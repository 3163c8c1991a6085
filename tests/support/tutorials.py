"""A tutorial as its reader goes through it: all commands of its `sh` and `python` blocks are typed, and say what the page shows.

A block of text right below a command's block is what it prints, line by line; "…" stands for what is left out, inside a line or as one.
A command that the page shows as refused (`error: ...`) must be, with a message that names an option which the next command has.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```\n(?:\s*```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


@dataclass
class Step:
    """A command of a page, and the lines that the page shows below it."""

    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether the page shows a refusal."""
        return any(line.startswith("error: ") for line in self.shown)


@dataclass
class Walk:
    """What a reader did: the commands of mmpo's, which of them were refused, and all that was said."""

    commands: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def steps(page: str) -> Iterator[Step]:
    """The commands of docs/PAGE in order; of a block of several, what is shown belongs to the last."""
    for language, block, shown in FENCE.findall((DOCS / page).read_text(encoding="utf-8")):
        if language == "sh":
            commands = [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
            yield from (Step(command) for command in commands[:-1])
            yield Step(commands[-1], shown.splitlines())
        elif language == "python":
            yield Step(f"python - <<'END'\n{block}END", shown.splitlines())


def shows(said: str, shown: list[str]) -> str | None:
    """The first line shown that was not said, after those before it; None where all were. Runs of white space count as one space."""
    rest = " ".join(said.split())
    for line in shown:
        parts = [" ".join(part.split()) for part in line.split("…")]
        for part in filter(None, parts):
            _, found, rest = rest.partition(part)
            if not found:
                return line
    return None


def walk(
    page: str,
    folder: Path,
    *,
    skipped: tuple[str, ...] = (),
    instead: Mapping[str, str] | None = None,
    meanwhile: Mapping[str, Callable[[], object]] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> Walk:
    """Type the page's commands in a folder. skipped: how commands begin that the test stands in for (installing, servers that stay).
    instead: words of commands, and what stands in their place here (a model that is not there). meanwhile: how a command begins, and
    what others do before it. environment: further variables, which take the place of those that the page exports.
    """
    done, ours = Walk(), dict(environment or {})
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "COLUMNS": "200", **ours, "PATH": paths}
    before: Step | None = None
    for step in steps(page):
        if step.command.startswith(skipped or ("\0",)):
            continue
        for words, act in (meanwhile or {}).items():
            if step.command.startswith(words):
                act()
        for words, here in (instead or {}).items():
            step.command = step.command.replace(words, here)
        if step.command.startswith("export "):
            given = dict(word.split("=", 1) for word in shlex.split(step.command)[1:])
            env |= {name: value for name, value in given.items() if name not in ours}
            continue
        if before is not None and before.refused:
            options = set(re.findall(r"--[a-z][a-z-]+", done.said[-1])) & set(shlex.split(step.command))
            assert options, f"{page}: the refusal of `{before.command}` names no option that `{step.command}` has: {done.said[-1]}"
        run = subprocess.run(
            ["bash", "-c", step.command], cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
        said = run.stdout + run.stderr
        done.said.append(said)
        assert run.returncode == (2 if step.refused else 0), f"{page}: `{step.command}` left with {run.returncode}: {said}"
        missing = shows(said, step.shown)
        assert missing is None, f"{page}: `{step.command}` does not say {missing!r}: {said}"
        if "mmpo" in step.command.split()[0:1]:
            done.commands.append(step.command)
            done.refusals += [said] if step.refused else []
        before = step
    return done
