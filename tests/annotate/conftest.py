"""Fixtures: the OpenAI-compatible server of our own, started with a plan and stopped after the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from argilla_fixture import argilla, argilla_environment  # noqa: F401
from openai_server import Server, serving


@pytest.fixture
def openai_server() -> Iterator[Callable[..., Server]]:
    """Starts servers: `openai_server({"latency": 0.1}, grades=path)`; all are stopped after the test, a bug in one fails it."""
    with ExitStack() as running:

        def start(plan: dict[str, Any] | None = None, **options: Any) -> Server:
            return running.enter_context(serving(plan, **options))

        yield start
