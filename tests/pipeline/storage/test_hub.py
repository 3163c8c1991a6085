"""Datasets of the Hub: which revision is asked for, and which commit the manifest says was read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, hub_server

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import resolve_inputs

ROWS = b"".join(b'{"prompt": "Ask", "completion": "%s", "score": %d}\n' % one for one in ((b"a", 1), (b"b", 2)))


def build(sources: list[str], address: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One after the other, in a process of its own: the libraries read the Hub's address when they are imported. Prints each status."""
    code = (
        "import sys; from mmpo.cli.main import run\n"
        "for source in sys.argv[1].split(): print('status', run(['build', source, *sys.argv[2:]]))"
    )
    arguments = [" ".join(sources), "--format", "jsonl", "--out", str(folder / "out"), "--split", "1,0,0"]
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=100, check=False
    )


def test_a_dataset_of_the_hub_is_pinned_in_the_manifest(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with hub_server("owner/name", "train.jsonl", ROWS) as (address, asked):
        done = build(["hub:owner/name@a-branch:train", "hub:owner/other"], address, tmp_path)
        assert [line for line in done.stdout.splitlines() if line.startswith("status")] == ["status 0", "status 2"], done.stderr
        assert "GET /api/datasets/owner/name/revision/a-branch" in asked
        [told] = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]
        assert (told["name"], told["revision"]) == ("owner/name:train", COMMIT)
        assert "hub:owner/other can't be loaded" in done.stderr


@pytest.mark.parametrize("name", ["hub:name", "hub:", "hub:a/b/c/d", "hub:a/b@", "hub:a/b:"])
def test_what_is_no_name_of_a_dataset_is_told(name: str) -> None:
    with pytest.raises(UserError, match="a Hub dataset is hub:OWNER/NAME"):
        resolve_inputs([name], "jsonl")


def test_a_missing_path_is_not_looked_for_on_the_hub_with_a_revision() -> None:
    with pytest.raises(UserError, match=r"no such file or folder: nowhere/rows@main$"):
        resolve_inputs(["nowhere/rows@main"], "jsonl")
