"""What the documents say runs: the Python blocks of the README and of docs/extending.md, and every link inside the repository."""

import csv
import re
from pathlib import Path

import pytest

from mmpo.pipeline import BuildOptions, build, load_pairs
from mmpo.pipeline.sources import SOURCES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md"])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    if page == "README.md":
        assert (tmp_path / "pairs" / "manifest.json").is_file()


def test_the_rows_that_readme_begins_with_make_the_pair_that_it_shows(tmp_path: Path) -> None:
    """With three more prompts of its kind, graded by the same people."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (Is a tomato[^|]*) \| ([^|]*) \| (\w+) \| (\d) \|", text, re.MULTILINE)
    assert len(rows) == 6
    for number, grades in enumerate(["545232", "445121", "555454"]):
        rows += [
            (f"question {number}", f"answer {place // 3}", rows[place][2], grade)
            for place, grade in enumerate(grades)
        ]  # fmt: skip
    with open(tmp_path / "grades.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer", "who", "grade"), *rows])
    columns = {"prompt": "question", "completion": "answer", "rater": "who", "score": "grade"}
    build(tmp_path / "grades.csv", tmp_path / "pairs", options=BuildOptions(format="csv", columns=columns, scale=(1, 5)))
    [pair] = [row for row in load_pairs(tmp_path / "pairs").to_pylist() if "tomato" in row["prompt"][0]["content"]]
    assert f"**{pair['chosen'][0]['content']}** is better than **{pair['rejected'][0]['content']}**" in text
    error = f"{pair['margin_se']:.2f}".lstrip("0")
    assert f"by a margin of {pair['quality_margin']}, standard error {error};" in text
    assert f"{pair['preferring']} of {pair['raters']} raters prefer it" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_in_the_documents_have_flags_that_exist() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("    mmpo "):
                for flag in re.findall(r"(?<=\s)--[a-z][a-z-]+", line):
                    assert flag in reference, f"{page.name}: {line.strip()}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "LOG.md"], ids=lambda page: page.name)
def test_files_that_the_documents_name_are_there(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/])((?:pipeline|annotate|train|cli|tests|benchmarks|recipes)/[\w/]+\.\w+)", page.read_text(encoding="utf-8")
    )
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_tree_of_the_house_is_the_one_that_stands() -> None:
    from mmpo.cli.docs import house

    written = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert written == house(written, ROOT), "docs/architecture.md is out of date: make docs"
    for path in (path for folder in ("pipeline", "annotate", "train", "cli") for path in (ROOT / folder).rglob("*.py")):
        assert path.stem.startswith("__") or f"{path.name} " in written


def test_readme_names_every_format() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("Feedback in any of ")[2].partition("\n\n**")[0]
    rows = table.partition("|---|---|")[2]
    assert set(SOURCES) <= set(re.findall(r"[a-z0-9][a-z0-9-]*", rows)) and table.startswith(f"{len(SOURCES)} formats")


def test_every_page_stands_in_the_sites_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f'"{page}"' not in navigation] == []
