"""docs/security.md: every line names a test that is there; and the tests of what no room of the house holds."""

import ast
import re
import sys
from pathlib import Path

import pytest
from command import refused

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_what_the_page_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_line_of_its_tables_names_one() -> None:
    rows = [line for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    held = [row for row in rows if not row.startswith(("| it could", "| secret"))]
    assert len(held) > 20
    assert [row for row in held if "`tests/" not in row] == []


@pytest.mark.parametrize(
    "words",
    [["run", "file.yaml"], ["build", "--sources", "file.yaml", "--out", "pairs"]],
    ids=["recipe", "sources"],
)
def test_yaml_makes_no_objects(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tuple is as harmless as an object of Python's can be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.yaml").write_text("out: !!python/tuple [a, b]\n")
    assert "python/tuple" in refused(words, tmp_path, capsys, "file.yaml")


def test_a_site_that_loads_something_or_leads_nowhere_is_told(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from check_site import faults

    page = tmp_path / "index.html"
    page.write_text('<h1 id="top">A</h1><a href="#top">up</a><a href="other.html#part">on</a><img src="a.png">')
    (tmp_path / "other.html").write_text('<h2 id="part">B</h2><link rel="canonical" href="https://example.org/">')
    assert faults(tmp_path) == []
    page.write_text('<a href="#gone">x</a><a href="gone.html">y</a><script src="https://example.org/a.js"></script>')
    told = faults(tmp_path)
    assert [one.split(": ", 1)[1] for one in told] == [
        "loads https://example.org/a.js",
        "#gone names no heading",
        "gone.html leads nowhere",
    ]
