"""Fixtures: the OpenAI-compatible server of our own, started with a plan, alone or with candidates to judge; a dataset of Argilla's."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from argilla_cases import Asked
from argilla_fixture import Argilla, argilla, argilla_environment  # noqa: F401
from bench_cases import PLAYERS, Bench
from cases import Generating, Judging
from folders import feedback_folder
from openai_server import Server, serving
from own_judges import answering
from raw_endpoint import raw_endpoint

from mmpo.pipeline import BuildOptions, build


@pytest.fixture
def openai_server() -> Iterator[Callable[..., Server]]:
    """Starts servers: `openai_server({"latency": 0.1}, grades=path)`; all are stopped after the test, a bug in one fails it."""
    with ExitStack() as running:

        def start(plan: dict[str, Any] | None = None, **options: Any) -> Server:
            return running.enter_context(serving(plan, **options))

        yield start


@pytest.fixture
def judging(openai_server: Callable[..., Server], tmp_path: Path) -> Callable[..., Judging]:
    """Starts a server with candidates for it: `judging({"latency": 0.1}, prompts, completions)`."""
    return lambda plan=None, *rows, **options: Judging(openai_server(plan), tmp_path, *rows, **options)


@pytest.fixture
def generating(openai_server: Callable[..., Server], tmp_path: Path) -> Callable[..., Generating]:
    """Starts a server that writes texts, with prompts for it: `generating({"latency": 0.1}, prompts)`."""
    written = {"defaults": {"writes": True}, "keep_bodies": True}
    return lambda plan=None, *rows: Generating(openai_server(written | (plan or {})), tmp_path, *rows)


@pytest.fixture
def generating_by(tmp_path: Path) -> Iterator[Callable[..., Generating]]:
    """Starts an endpoint that answers by a function of the request's body, with prompts for it."""
    with ExitStack() as running:
        yield lambda answer, *rows: Generating(running.enter_context(raw_endpoint(answering(answer))), tmp_path, *rows)


@pytest.fixture
def prices(tmp_path: Path) -> str:
    """Prices of a million tokens of the judges, read and written."""
    path = tmp_path / "prices.yaml"
    path.write_text("batch: 0.5\nmodels:\n  judge-a: [1000, 2000]\n  judge-b: [1, 1]\n  judge-c: [1, 1]\n")
    return str(path)


@pytest.fixture(autouse=True)
def _key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that use Argilla's server hold its owner's key, as a user does; the others any key."""
    with_server = "argilla" in request.fixturenames
    monkeypatch.setenv("ARGILLA_API_KEY", request.getfixturevalue("argilla").owner_key if with_server else "any.key")


@pytest.fixture
def asked(argilla: Argilla, tmp_path: Path) -> Asked:  # noqa: F811
    """A dataset of the test's own, not pushed yet."""
    return Asked(argilla, tmp_path)


@pytest.fixture
def judging_by(tmp_path: Path) -> Iterator[Callable[..., Judging]]:
    """Starts an endpoint that answers by a function of the request's body, with candidates for it."""
    with ExitStack() as running:
        yield lambda answer, *rows: Judging(running.enter_context(raw_endpoint(answering(answer))), tmp_path, *(rows or (1, 2)))


@pytest.fixture
def joined(tmp_path: Path) -> Callable[..., Path]:
    """FEEDBACK of groups of rows, each with a kind and, where it matters, a scale: `joined((rows, (-3, 3), "human"), (rows, "ai"))`."""

    def make(*groups: tuple[Any, ...]) -> Path:
        parts = [
            feedback_folder(tmp_path / f"part{i}", rows, kind=kind, **({"scale": scale[0]} if scale else {}))
            for i, (rows, *scale, kind) in enumerate(groups)
        ]
        build(parts, tmp_path / "all", options=BuildOptions(format="feedback", feedback_only=True))
        return tmp_path / "all"

    return make


@pytest.fixture
def bench(openai_server: Callable[..., Server], tmp_path: Path) -> Callable[..., Bench]:
    """Starts a server that answers and judges, with questions for it: `bench({"latency": 0.1}, 8)`."""
    return lambda plan=None, *rows: Bench(openai_server(PLAYERS | (plan or {})), tmp_path, *rows)


@pytest.fixture
def bench_by(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Starts an endpoint that answers by a function of the request's body, with questions for it."""
    with ExitStack() as running:
        yield lambda answer, *rows: Bench(running.enter_context(raw_endpoint(answering(answer))), tmp_path, *rows)
