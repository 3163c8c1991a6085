"""What a command imports before it works: pandas is no part of building and checking, and stays there for who asks for it."""

import json
import os
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


def test_a_command_searches_for_no_garbage_but_while_it_works(tmp_path: Path) -> None:
    """Not while it imports, nor at its end; in between as ever."""
    (tmp_path / "own.py").write_text(
        "import gc\nfrom mmpo.pipeline.builder import BadRow\nprint(gc.isenabled())\n"
        "def parse(row, out, options):\n    raise BadRow('seen')\n",
        encoding="utf-8",
    )
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "q"}])
    seen = "import atexit, gc, sys; atexit.register(lambda: print('frozen', gc.get_freeze_count() > 10_000)); "
    seen += "from mmpo.cli import entry; print('before', gc.isenabled()); "
    seen += f"sys.path.insert(0, {str(tmp_path)!r}); entry.main()"
    words = [sys.executable, "-c", seen, "build", str(rows), "--format", "own:parse", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n")[:-1] == ["before True", "True", "frozen True"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("room", ["mmpo.annotate.calibrate.run", "mmpo.train.advise.run"])
def test_small_fits_take_one_thread_of_every_library(room: str) -> None:
    """Also of that of scipy, which is loaded when it is first needed."""
    told = "print({one['num_threads'] for one in threadpool_info() if one['user_api'] == 'blas'})"
    code = f"from {room} import one_thread\nfrom threadpoolctl import threadpool_info\nwith one_thread():\n import scipy.optimize\n {told}"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert done.stdout.strip() == "{1}"
