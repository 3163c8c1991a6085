"""What a command imports before it works: pandas is no part of building and checking, and stays there for who asks for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from folders import write_rows

MAIN = "import atexit, sys; atexit.register(lambda: print('pandas' in sys.modules)); from mmpo.cli.main import main; main()"


def last_line(code: str, *words: object) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_data_commands_import_no_pandas(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{p}", "completion": f"{text} {p}", "score": text} for p in range(40) for text in (1, 2)]
    source, out = write_rows(tmp_path / "grades.jsonl", rows), tmp_path / "pairs"
    for words in (
        ("build", source, "--format", "jsonl", "--out", out),
        ("validate", out),
        ("gamma", out),
        ("report", out, "--out", tmp_path / "page.html"),
        ("export", out, "--to", "jsonl", "--out", tmp_path / "pairs.jsonl"),
    ):
        assert last_line(MAIN, *words) == "False", words


@pytest.mark.parametrize("asked", ["pa.table({'a': [1, 2]}).to_pandas()", "pa.Table.from_pandas(pd.DataFrame({'a': [1, 2]}))"])
def test_pandas_that_was_left_out_is_there_when_asked_for(asked: str) -> None:
    code = "from mmpo.pipeline.arrow import leave_pandas_out; leave_pandas_out(); import pyarrow as pa, pandas as pd, json; "
    assert json.loads(last_line(f"{code} print(json.dumps({asked}.shape))")) == [2, 1]
