"""What reads exports reads them: rewardbench's own loader and a running Label Studio, each in an environment of its own (`make whole`).

The quick tests of these layouts are in test_layouts.py and test_round_trips.py; TRL's trainers and Argilla are tried in the default run.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import torch
from out_cases import graded, held

from mmpo.annotate.exports import export
from mmpo.pipeline import BuildOptions, build
from mmpo.train.model import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.whole]
REWARDBENCH = ("rewardbench==0.1.4", "fschat==0.2.36", "shortuuid", "markdown2", "trl==0.17.0", "sentencepiece")
"""Without their dependencies: torch and the like are borrowed from the environment of the tests."""


def python_with(name: str, packages: tuple[str, ...], alone: tuple[str, ...] = ()) -> str:
    """The Python of an environment with these packages, kept inside .venv; `alone`: without what they depend on. Skips where they can't be
    had."""
    folder = ROOT / ".venv" / "consumers" / name
    python = str(folder / "bin" / "python")
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)
        for more in (["--no-deps", *alone] if alone else [], [*packages]):
            done = subprocess.run(
                [python, "-m", "pip", "install", "-q", *more], capture_output=True, text=True, timeout=900, check=False
            )
            if more and done.returncode:
                pytest.skip(f"{name} can't be installed here: {done.stderr.strip().splitlines()[-1]}")
        (folder / "whole").touch()
    return python


LOAD = """
import json, sys
sys.path.append(sys.argv[1])
from transformers import PreTrainedTokenizerFast
from rewardbench.utils import load_and_process_dataset
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[2])
tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
rows = load_and_process_dataset(sys.argv[3], json=True, tokenizer=tokenizer)
print(json.dumps([[row["text_chosen"], row["text_rejected"]] for row in rows]))
"""


def test_rewardbench_renders_every_row_as_it_was_said(tmp_path: Path) -> None:
    """System messages at the head of the user's first; roles as they were."""
    build_pairs(tmp_path, split=(0, 0, 1))
    summary = export(tmp_path / "pairs", "rewardbench", tmp_path / "out.jsonl")
    python = python_with("rewardbench", ("transformers==4.51.0", "datasets==3.6.0"), REWARDBENCH)
    tiny_tokenizer(["any text"], 400).save_pretrained(tmp_path / "tokenizer")
    words = [
        python,
        "-c",
        LOAD,
        str(Path(torch.__file__).parents[1]),
        str(tmp_path / "tokenizer" / "tokenizer.json"),
        str(tmp_path / "out.jsonl"),
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "HF_HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n") if line]
    prompts = ["".join(f"[{message['role']}]{message['content']}" for message in row["prompt"]) for row in rows]
    assert shown == [[f"{p}[assistant]{row['chosen']}", f"{p}[assistant]{row['rejected']}"] for p, row in zip(prompts, rows)]
    assert len(shown) == sum(summary["pairs"].values()) and any("Be brief.\n\n=1+1" in chosen for chosen, _ in shown)


def build_pairs(folder: Path, split: tuple[float, float, float]) -> None:
    """The pairs of test_round_trips.py, in one split."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, graded(3))))
    build(folder / "rows.jsonl", folder / "pairs", options=BuildOptions("jsonl", split=split))


@pytest.fixture
def label_studio(tmp_path: Path) -> Iterator[httpx.Client]:
    """A Label Studio of the test's own, on this machine, and whoever made it as its client."""
    python = python_with("label-studio", ("label-studio==1.23.2",))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], "0123456789abcdef" * 2 + "01234567"
    own = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(tmp_path / "home"),
        "COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    }
    words = [
        "start",
        "--no-browser",
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
        "--username",
        "a@b.c",
        "--password",
        "12345678",
    ]
    server = subprocess.Popen(
        [str(Path(python).with_name("label-studio")), *words, "--user-token", token],
        env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Token {token}"}, timeout=60) as client:
            until = time.monotonic() + 420  # its first start makes its tables: minutes
            while time.monotonic() < until and server.poll() is None:
                with suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                time.sleep(2)
            yield client
    finally:
        server.terminate()
        server.wait(30)


def test_label_studio_takes_the_tasks_and_its_exports_come_back(label_studio: httpx.Client, tmp_path: Path) -> None:
    build_pairs(tmp_path, split=(1, 0, 0))
    columns = export(tmp_path / "pairs", "label-studio", tmp_path / "out")["next"].partition("--columns ")[2].partition(" ")[0]
    config = (tmp_path / "out" / "config.xml").read_text(encoding="utf-8")
    project = label_studio.post("/api/projects", json={"title": "pairs", "label_config": config}).raise_for_status().json()["id"]
    [path] = (tmp_path / "out").glob("*.json")
    label_studio.post(f"/api/projects/{project}/import", content=path.read_bytes(), headers={"Content-Type": "application/json"})
    listed = label_studio.get("/api/tasks", params={"project": project, "page_size": 500}).raise_for_status().json()["tasks"]
    answer = {"type": "choices", "from_name": "grade", "to_name": "conversation", "value": {"choices": ["A slightly better"]}}
    for task in listed:
        label_studio.post(f"/api/tasks/{task['id']}/annotations", json={"result": [answer]}).raise_for_status()
    options = {
        "columns": dict(one.split("=") for one in columns.split(",")),
        "gap_of": {"A slightly better": 1},
        "split": (1, 0, 0),
    }
    found = {}
    for kind, name in (("JSON", "a.json"), ("JSON_MIN", "b.json"), ("CSV", "c.csv")):
        exported = label_studio.get(f"/api/projects/{project}/export", params={"exportType": kind}).raise_for_status().content
        (tmp_path / name).write_bytes(exported)
        build(tmp_path / name, tmp_path / kind, options=BuildOptions("label-studio", **options))
        found[kind] = {(prompt, frozenset(ids)) for prompt, *ids in held(tmp_path / kind)}
    before = {(prompt, frozenset(ids)) for prompt, *ids in held(tmp_path / "pairs")}
    assert found == dict.fromkeys(("JSON", "JSON_MIN", "CSV"), before)
