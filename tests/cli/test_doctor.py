"""`mmpo doctor`: what it says of a whole installation, of one without extras, and of one with a package that is too old or broken."""

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from command import environment, mmpo
from packaging.requirements import Requirement

from mmpo.cli.commands.doctor import GRADES, MARGINS
from mmpo.cli.installed import requirements

ROOT = Path(__file__).resolve().parents[2]


def below(names: list[str]) -> set[str]:
    """The packages, and all that they need."""
    found, left = set(), [(name, "") for name in names]
    seen = set()
    while left:
        name, extra = left.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        for one in map(Requirement, distribution(name).requires or ()):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                left += [(one.name, needed) for needed in ("", *one.extras)]
    return found


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds mmpo and what its core needs, nothing of the extras: links to those of this environment."""
    site = tmp_path_factory.mktemp("core")
    for name in below(list(requirements()[""])):
        place = Path(str(distribution(name).locate_file("")))
        tops = {path.parts[0] for path in distribution(name).files or ()}
        for top in tops - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(place / top)
    (site / "mmpo").mkdir()
    for folder in ("pipeline", "annotate", "train", "cli"):
        (site / "mmpo" / folder).symlink_to(ROOT / folder)
    (site / "mmpo-0.dist-info").mkdir()
    (site / "mmpo-0.dist-info" / "METADATA").write_text(distribution("mmpo").metadata.as_string(), encoding="utf-8")
    return site


def doctor(site: Path, folder: Path) -> tuple[int, dict[str, Any], str]:
    code = f"import sys; sys.path[:0] = [{str(site)!r}]; from mmpo.cli.main import main; main()"
    line = [sys.executable, "-S", "-c", code, "doctor", "--json"]  # -S: no packages but these
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=environment(), timeout=120, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_margins_of_the_trial_are_those_by_hand() -> None:
    gaps = [a - b for texts in GRADES.values() for a in texts.values() for b in texts.values() if a > b]
    assert sorted(gaps) == MARGINS


@pytest.mark.slow
def test_a_whole_installation_builds_and_trains() -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    done = mmpo("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"], done.stderr
    assert [(test["name"], test["ok"]) for test in found["tests"]] == [("build a dataset", True), ("train a step", True)]
    assert found["device"]["kind"] in ("cpu", "cuda", "mps") and found["extras"]["train"]["missing"] == []


def test_without_extras_it_says_what_each_would_add(core: Path, tmp_path: Path) -> None:
    status, found, told = doctor(core, tmp_path)
    assert status == 0 and found["ok"], told
    assert found["extras"]["(core)"]["missing"] == [] and "torch" in found["extras"]["train"]["missing"]
    assert [test["name"] for test in found["tests"]] == ["build a dataset"] and found["device"] is None
    assert "pip install 'mmpo[train]'" in told and "argilla serve, push, pull" in told


def test_a_package_that_is_too_old_is_named_with_the_line_that_mends_it(core: Path, tmp_path: Path) -> None:
    (tmp_path / "openai-0.1.dist-info").mkdir()
    (tmp_path / "openai-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: openai\nVersion: 0.1\n")
    for path in core.iterdir():
        (tmp_path / path.name).symlink_to(path)
    status, found, told = doctor(tmp_path, tmp_path)
    assert status == 1 and not found["ok"]
    assert "openai 0.1 (>=" in told and "pip install --upgrade 'mmpo[judge]'" in told


def test_a_package_that_is_broken_fails_the_trial(core: Path, tmp_path: Path) -> None:
    for path in core.iterdir():
        if path.name != "zstandard":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "zstandard").mkdir()
    (tmp_path / "zstandard" / "__init__.py").write_text("raise ImportError('libzstd.so.1: cannot open shared object file')\n")
    status, found, told = doctor(tmp_path, tmp_path)
    assert status == 1 and "Traceback" not in told
    assert "error: does not work: build a dataset" in told and "libzstd.so.1" in found["tests"][0]["message"]
