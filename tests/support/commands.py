"""Running commands in tests: one that must be refused, and the rows that they are given."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import contents

from mmpo.cli.main import run


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must be refused: exit status 2, one message that holds the words, nothing on standard output, and
    nothing changed anywhere in the folder.
    """
    before = contents(folder)
    capsys.readouterr()
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    message = captured.err[captured.err.index("error: ") :]
    for word in words:
        assert word in message, message
    assert contents(folder) == before
    return message


def lines(values: list[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def graded(count: int = 60, answers: int = 3) -> list[dict[str, Any]]:
    """A row per completion, with scores from 1 to 9."""
    return [
        {"prompt": f"Question {i}?", "completion": f"Answer {j} to {i}.", "score": 1 + (3 * i + 2 * j) % 9}
        for i in range(count)
        for j in range(answers)
    ]
