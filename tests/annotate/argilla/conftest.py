"""Tests that use the server hold its owner's key, as a user does; the others any key."""

import pytest


@pytest.fixture(autouse=True)
def _key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with_server = "argilla" in request.fixturenames
    monkeypatch.setenv("ARGILLA_API_KEY", request.getfixturevalue("argilla").owner_key if with_server else "any.key")
