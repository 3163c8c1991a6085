"""Tests that use the server hold its owner's key, as a user does; the others any key."""

from pathlib import Path

import pytest
from argilla_cases import Asked
from argilla_fixture import Argilla


@pytest.fixture(autouse=True)
def _key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with_server = "argilla" in request.fixturenames
    monkeypatch.setenv("ARGILLA_API_KEY", request.getfixturevalue("argilla").owner_key if with_server else "any.key")


@pytest.fixture
def asked(argilla: Argilla, tmp_path: Path) -> Asked:
    """A dataset of the test's own, not pushed yet."""
    return Asked(argilla, tmp_path)
