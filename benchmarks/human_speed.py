"""benchmarks/human.py: push and pull beside the SDK's own bare loop, on the embedded server.

Ours is the whole call: connecting, reading the folder, making the dataset, sending; or reading all records, proving each by its id, writing
FEEDBACK and measuring agreement. The bare loop connects, makes a dataset with the same questions and logs the same records, which lie ready
in memory, 500 at a time; or iterates over the dataset's records with their responses and keeps the values. Interleaved, on one server.
"""

import contextlib
import io
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from argilla_fixture import WORKSPACE, Argilla, serve_argilla

from mmpo.annotate.argilla import GRADES, PullOptions, PushOptions, pull, push
from mmpo.pipeline import BuildOptions, build

__all__ = ["run"]

BATCH = 500
"""Records of a request, Argilla's most: what the bare loop sends at a time, and ours too."""
OWNER, RATERS = "owner", ("anna", "ben")
SAMPLE = Path(__file__).resolve().parent.parent / "data" / "ultrafeedback_pairs.jsonl"
ROW = "  {:28} {:>24} {:>16}"


class Size(NamedTuple):
    """Records, and how often each way is run."""

    records: int
    runs: int


FULL, QUICK = Size(2_000, 5), Size(500, 3)


def run(folder: Path, quick: bool) -> dict[str, float]:
    """Prints seconds and records/s of each way; the ratios are ours over the bare loop's time, medians of the runs' own ratios."""
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as scratch, _server(Path(scratch)) as server:
        data = _candidates(Path(scratch) / "data", size.records)
        name = f"asked-{uuid.uuid4().hex[:6]}"
        _ours_pushes(server, data, name)
        records = _records(server, name)
        print(f"push and pull of {size.records:,} pairs of UltraFeedback's length, {size.runs} runs each; median (min - max)")
        print(ROW.format("", "seconds", "records/s"))
        ways = {
            "mmpo argilla push": lambda: _ours_pushes(server, data, f"ours-{uuid.uuid4().hex}"),
            "the SDK's records.log": lambda: _bare_pushes(server, records, f"bare-{uuid.uuid4().hex}"),
        }
        ratios = {"push_vs_sdk": _compare(ways, size)}
        _answer(server, name, records)
        ways = {
            "mmpo argilla pull": lambda: _ours_pulls(server, name, Path(scratch) / uuid.uuid4().hex, size.records),
            "iterating over the SDK's records": lambda: _bare_pulls(server, name, size.records),
        }
        ratios["pull_vs_sdk"] = _compare(ways, size)
    for name, ratio in ratios.items():
        print(f"  {name}: {ratio:.2f} (aim: at most 1.2)")
    return ratios


def _compare(ways: dict[str, Callable[[], None]], size: Size) -> float:
    """Runs two ways in turn, the one that begins changing from run to run; the median ratio of the first to the second."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(size.runs):
        for name, way in list(ways.items())[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - started)
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        spread = f"{middle:.2f} ({min(seconds):.2f} - {max(seconds):.2f})"
        print(ROW.format(name, spread, f"{size.records / middle:,.0f}"))
    ours, bare = taken.values()
    return statistics.median(one / other for one, other in zip(ours, bare))


@contextmanager
def _server(scratch: Path) -> Iterator[Argilla]:
    """The embedded server, in memory where the system allows, with two annotators; the owner's key in the environment as for a user."""
    memory = Path("/dev/shm")
    options = [word for name in RATERS for word in ("--annotator", name)]
    passwords = {name: uuid.uuid4().hex for name in (OWNER, *RATERS)}
    with (
        tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as home,
        serve_argilla(Path(home) / "home", *options, passwords=passwords, messages=scratch / "said.txt") as serving,
        closing(Argilla(serving.ready["url"], passwords.pop(OWNER), passwords=passwords)) as server,
    ):
        os.environ["ARGILLA_API_KEY"] = server.owner_key
        yield server


def _candidates(folder: Path, records: int) -> Path:
    """FEEDBACK with a pair a prompt: the texts of the sample, numbered so that no two prompts are the same."""
    rows = [orjson.loads(line) for line in SAMPLE.read_bytes().splitlines()]
    lines = []
    for i in range(records):
        row = rows[i % len(rows)]
        texts = [row["chosen"][-1]["content"], row["rejected"][-1]["content"] + "\n"]
        lines.append(orjson.dumps({"prompt": f"{row['prompt']}\n({i})", "completions": texts, "models": ["one", "other"]}))
    source = folder.with_suffix(".jsonl")
    source.write_bytes(b"\n".join(lines) + b"\n")
    build(source, folder, options=BuildOptions(format="jsonl", feedback_only=True))
    return folder


def _ours_pushes(server: Argilla, data: Path, name: str) -> None:
    push(data, name, WORKSPACE, options=PushOptions(api_url=server.api_url))


def _ours_pulls(server: Argilla, name: str, out: Path, records: int) -> None:
    summary = pull(name, out, WORKSPACE, options=PullOptions(api_url=server.api_url))
    assert summary["grades"] == len(RATERS) * records


def _connected(server: Argilla) -> Any:
    import argilla

    return argilla.Argilla(api_url=server.api_url, api_key=server.owner_key)


def _records(server: Argilla, name: str) -> list[dict[str, Any]]:
    """The records of a dataset as the SDK takes them."""
    client = _connected(server)
    with closing(client.api.http_client):
        dataset = client.datasets(name, workspace=WORKSPACE)
        return [{"id": one.id, "fields": dict(one.fields), "metadata": dict(one.metadata)} for one in dataset.records]


def _logged(dataset: Any, records: list[Any]) -> None:
    """The SDK's own loop, without its progress bar."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        for start in range(0, len(records), BATCH):
            dataset.records.log(records[start : start + BATCH], batch_size=BATCH)


def _bare_pushes(server: Argilla, records: list[dict[str, Any]], name: str) -> None:
    import argilla as rg

    client = _connected(server)
    with closing(client.api.http_client):
        terms = [rg.TermsMetadataProperty(name) for name in ("source", "model_a", "model_b")]
        settings = rg.Settings(
            fields=[rg.ChatField("prompt"), *(rg.TextField(name, use_markdown=True) for name in ("reply_a", "reply_b"))],
            questions=[rg.LabelQuestion("grade", labels=dict(GRADES)), rg.TextQuestion("rationale", required=False)],
            metadata=[*terms, *(rg.FloatMetadataProperty(name) for name in ("margin", "margin_se"))],
            allow_extra_metadata=True,
        )
        dataset = rg.Dataset(name, workspace=WORKSPACE, settings=settings, client=client).create()
        _logged(dataset, [rg.Record(**record) for record in records])


def _bare_pulls(server: Argilla, name: str, records: int) -> None:
    client = _connected(server)
    with closing(client.api.http_client):
        dataset = client.datasets(name, workspace=WORKSPACE)
        found = [
            (record.id, response.user_id, response.question_name, response.value, response.status)
            for record in dataset.records(with_responses=True)
            for response in record.responses
        ]
    assert len(found) == len(RATERS) * records


def _answer(server: Argilla, name: str, records: list[dict[str, Any]]) -> None:
    """Both raters answer every record, sent by the owner: through the page it would take the server longer than all that is timed."""
    import argilla as rg

    client = _connected(server)
    with closing(client.api.http_client):
        users = [client.users(rater).id for rater in RATERS]
        grades = list(GRADES)
        answered = [
            rg.Record(
                **record,
                responses=[
                    rg.Response("grade", grades[(i * 3 + i // 7 + k) % len(grades)], user_id=user, status="submitted")
                    for k, user in enumerate(users)
                ],
            )
            for i, record in enumerate(records)
        ]
        _logged(client.datasets(name, workspace=WORKSPACE), answered)
