"""docs/python.md is run, top to bottom, against a server on this machine; and no public name is left out of it."""

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest
from openai_server import serving

import mmpo.annotate
import mmpo.pipeline
import mmpo.train

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", [mmpo.pipeline, mmpo.annotate, mmpo.train], ids=lambda package: package.__name__)
def test_every_public_name_has_a_line_that_runs(package: ModuleType) -> None:
    lines = [line[4:] for line in PAGE.splitlines() if line.startswith((">>> ", "... "))]
    code = "\n".join(line for line in lines if "import" not in line)
    assert [name for name in package.__all__ if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    test = doctest.DocTestParser().get_doctest(PAGE, {"__name__": "__main__"}, "docs/python.md", "docs/python.md", 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    told: list[str] = []
    with serving() as server:
        test.globs["endpoint"] = server.base_url
        result = doctest.DocTestRunner(optionflags=flags).run(test, out=told.append)
    assert result.failed == 0, "".join(told)
