"""Fixtures of the tests of whole runs: what a loop begins with and is judged by."""

from collections.abc import Iterator
from pathlib import Path

import demo_loop
import pytest
from argilla_fixture import argilla, argilla_environment  # noqa: F401
from loop_cases import start_models
from openai_server import Server, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `start_models`; loops only read it."""
    return start_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The demo's judges."""
    with serving({"models": demo_loop.JUDGES, "worth": demo_loop.WORTH}) as started:
        yield started
