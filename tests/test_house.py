"""The rules of the house: directions of import, names, sizes, doctests, the wheel, and what each command may import."""

import ast
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from command import graded
from folders import write_rows

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pipeline", "annotate", "train", "cli")
ROOMS = [
    # pipeline: the tables, the mathematics, then from files to pairs, then what joins or reads them
    "pipeline.errors", "pipeline.margins", "pipeline.options", "pipeline.tables", "pipeline.thinking", "pipeline.progress",
    "pipeline.arrow", "pipeline.contract", "pipeline.storage", "pipeline.interactive", "pipeline.engines",
    "pipeline.grades", "pipeline.metrics", "pipeline.sources",
    "pipeline.builder", "pipeline.filters", "pipeline.pairs", "pipeline.build", "pipeline.api", "pipeline.checks", "pipeline.validate",
    "pipeline.hub", "pipeline", "pipeline.report", "pipeline.package",
    # annotate
    "annotate.scales", "annotate.pairings", "annotate.rows", "annotate.client", "annotate.batch", "annotate.asking", "annotate.replies",
    "annotate.judge", "annotate.generate", "annotate.agreement", "annotate.calibrate", "annotate.mt_bench", "annotate.select",
    "annotate", "annotate.argilla_server", "annotate.argilla", "annotate.exports",
    # train
    "train.objective", "train.losses", "train.messages", "train.options", "train.data", "train.distributed",
    "train.record", "train.batches", "train.model", "train.inference", "train.release", "train.training", "train.evaluation",
    "train.scoring", "train.advise", "train",
    # cli
    "cli.groups", "cli.help", "cli.installed", "cli.completion", "cli.entry", "cli.main", "cli.flags",
    "cli.output", "cli.asking", "cli.selecting", "cli.commands", "cli.recipe", "cli.docs", "cli.__main__", "cli",
]  # fmt: skip
"""Every room and every file that stands beside the rooms, in the order of imports: one may import what stands to its left."""
MAY_IMPORT = {"pipeline": {"pipeline"}, "annotate": {"annotate", "pipeline"}, "train": {"train", "pipeline"}, "cli": set(FOLDERS)}
APART = [{"annotate.agreement", "annotate.judge"}, {"train.training", "train.evaluation"}, {"pipeline.storage", "pipeline.grades"}]
"""Rooms side by side, none of which imports the other."""
WITHOUT_DOOR = {"mmpo.annotate.argilla_server.serve"}
"""The server's own process imports this room without its dependencies, so that its door stays empty."""
MOST_MODULES, MOST_LINES = 12, 500
WITHOUT_TORCH = ("pipeline", "annotate")
DATA_FILES = (".html", ".css", ".jinja", ".j2", ".yaml", ".txt", ".json", ".typed")


def files(folder: str, *suffixes: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes and "__pycache__" not in path.parts)


MODULES = [path for folder in FOLDERS for path in files(folder, ".py")]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("mmpo", *(parts[:-1] if parts[-1] == "__init__" else parts)))


PUBLIC = {*(f"mmpo.{folder}" for folder in FOLDERS), "mmpo.pipeline.margins", "mmpo.pipeline.builder", "mmpo.train.losses"}
"""What users import, and goes on working: these modules list their names."""
NAMES = {name_of(path) for path in MODULES}


def imports(path: Path) -> list[tuple[str, list[str], int]]:
    """Module, names taken from it and dots of every import, wherever in the file."""
    found: list[tuple[str, list[str], int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, [], 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", [alias.name for alias in node.names], node.level))
    return found


def room_of(name: str) -> str:
    """The room of a module by its full name: its package, or the module itself where it stands beside the rooms."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2])


def _has(package: str, name: str) -> bool:
    """Whether a package's door has something of that name that is no module."""
    found = getattr(importlib.import_module(package), name, None)
    return found is not None and not isinstance(found, ModuleType)


def imported(path: Path) -> list[str]:
    """The modules of ours that a file imports, wherever in it; `from package import module` is the module, unless the package's door
    has something of that name.
    """
    found = []
    for module, names, _ in imports(path):
        inside = {f"{module}.{name}": name for name in names}
        found += [full if full in NAMES and not _has(module, name) else module for full, name in inside.items()] or [module]
    return [name for name in found if name.startswith("mmpo.")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for module, _, level in imports(path):
        assert level == 0, f"{path}: relative import of {module}"
        parts = module.split(".")
        assert parts[0] not in FOLDERS, f"{path}: {module} is imported under its bare name"
        if folder in WITHOUT_TORCH:
            assert parts[0] not in ("torch", "transformers", "trl"), f"{path}: {folder} must not import {module}"
    own = room_of(name_of(path))
    assert own in ROOMS, f"{path}: {own} stands in no place of ROOMS"
    for module in imported(path):
        other = room_of(module)
        assert module.split(".")[1] in MAY_IMPORT[folder], f"{path}: {folder} must not import {module}"
        if other != own:
            assert ROOMS.index(other) < ROOMS.index(own), f"{path}: {own} must not import {module}, see ROOMS"
            assert not any({own, other} <= pair for pair in APART), f"{path}: {own} and {other} stand side by side"
        if module.split(".")[1] != folder and module not in WITHOUT_DOOR:
            assert len(module.split(".")) <= 3, f"{path}: {module} is entered from another package: import its room, {other}"


def test_rooms_are_small() -> None:
    folders = {path.parent for path in MODULES}
    modules = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert not {folder: count for folder, count in modules.items() if count > MOST_MODULES}
    assert not [folder for folder in folders if len(folder.relative_to(ROOT).parts) > 3]
    assert {room.split(".")[0] for room in ROOMS} == set(FOLDERS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_resolves_its_names_and_passes_its_doctests(path: Path) -> None:
    module = importlib.import_module(name_of(path))
    assert module.__doc__, f"{path} has no docstring"
    names = getattr(module, "__all__", None)
    assert (names is not None) == (name_of(path) in PUBLIC), f"{path}: rooms have doors, what users import has __all__"
    names = names or []
    assert len(set(names)) == len(names)
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"{path}: __all__ names {missing}"
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_no_file_is_too_long() -> None:
    everything = [*MODULES, *(path for folder in ("tests", "benchmarks") for path in files(folder, ".py"))]
    long = {str(path): count for path in everything if (count := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert not long


def test_no_public_class_has_the_name_of_another() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_a_step_is_read_in_ten_files() -> None:
    """The files from PAIRS to a step that docs/architecture.md lists in reading order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(train/[\w/]+\.py)`", page.partition("in reading order:**")[2].partition("\n\n")[0])
    assert len(listed) == 10
    assert sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in listed) <= 1676


def test_nothing_is_left_open() -> None:
    words = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X|NotImplemented" + r"Error)\b")
    assert not [str(path) for path in MODULES if words.search(path.read_text(encoding="utf-8"))]


def test_there_is_no_package_at_the_top() -> None:
    assert not (ROOT / "mmpo").exists()
    assert not (ROOT / "__init__.py").exists()


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False)


def loaded_by(arguments: list[str]) -> set[str]:
    """The top-level modules in memory after a command."""
    code = (
        "import sys\nfrom mmpo.cli.main import run\nstatus = run(sys.argv[1:])\n"
        "print('LOADED', status, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = fresh(code, *arguments)
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "LOADED", done.stderr
    assert last[1] == "0", done.stderr
    return set(last[2:])


TORCH = {"torch", "transformers"}


@pytest.mark.parametrize("command", ["", "build", "validate", "report", "gamma", "export", "run", "formats", "train", "evaluate"])
def test_help_imports_nothing_heavy(command: str) -> None:
    heavy = TORCH if command else TORCH | {"pandas", "pyarrow", "datasets", "matplotlib"}
    assert not loaded_by([*command.split(), "--help"]) & heavy


@pytest.mark.slow
def test_data_commands_never_import_torch(tmp_path: Path) -> None:
    source, out = str(write_rows(tmp_path / "grades.jsonl", graded(40))), str(tmp_path / "pairs")
    scores = str(write_rows(tmp_path / "scores.jsonl", [{"subset": "hep-go", "score_chosen": 2, "score_rejected": 1}]))
    for command in (
        ["build", source, "--format", "jsonl", "--out", out],
        ["validate", out],
        ["gamma", out],
        ["report", out, "--out", str(tmp_path / "page.html")],
        ["export", out, "--to", "jsonl", "--out", str(tmp_path / "pairs.jsonl")],
        ["evaluate", "scores", scores, "--suite", "rewardbench"],
    ):
        assert not loaded_by(command) & TORCH


USER = """
import mmpo
from mmpo.annotate import JudgeOptions, agree
from mmpo.pipeline import BuildOptions, DatasetFolder, build, build_pairs, read_feedback, to_pandas
from mmpo.train import TrainOptions

version: str = mmpo.__version__
options = BuildOptions(format="jsonl", ties="drop")
summary: dict[str, object] = build(["grades.jsonl"], "pairs", options=options)
rows: int = build_pairs(read_feedback("grades.jsonl", "jsonl")).num_rows
frame = to_pandas(DatasetFolder("pairs").pairs("test"))
longest: int = len(frame.columns)
TrainOptions(kind="reward", gamma="auto:.9")
agree("feedback", bootstrap=0)["pairs"]
JudgeOptions(model="m", samples=3)
BuildOptions(format="jsonl", ties="perhaps")  # wrong
build_pairs(read_feedback("grades.jsonl", "jsonl"), strategi="all")  # wrong
TrainOptions(data="pairs")  # wrong
"""


def seen_by_pyright(python: Path, script: Path) -> list[str]:
    """What pyright finds in a user's script where it should not, and the lines marked wrong where it finds nothing."""
    script.write_text(USER)
    line = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(python), str(script)]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, cwd=script.parent, timeout=300, check=False).stdout)
    lines = USER.splitlines()
    wrong = {number for number, line in enumerate(lines) if line.endswith("# wrong")}
    told = {one["range"]["start"]["line"]: one["message"] for one in found["generalDiagnostics"]}
    return [f"{lines[n]}: {message}" for n, message in told.items() if n not in wrong] + [lines[n] for n in wrong - told.keys()]


@pytest.mark.slow
def test_wheel_holds_every_module_and_works_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(build, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [wheel] = (tmp_path / "dist").glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    inside = set(archive.namelist())
    expected = {f"mmpo/{path.relative_to(ROOT)}" for folder in FOLDERS for path in files(folder, ".py", *DATA_FILES)}
    assert not expected - inside
    assert not {name for name in inside if not name.startswith("mmpo") or "test" in name.lower()}
    assert archive.read("mmpo/__init__.py") == (ROOT / "pipeline" / "package" / "__init__.py").read_bytes()
    # A clean environment that has our wheel and borrows the dependencies of this one.
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clean)], check=True, timeout=120)
    [site] = clean.glob("lib/python*/site-packages")
    archive.extractall(site)
    borrowed = str(Path(str(importlib.import_module("typer").__file__)).parents[1])
    code = (
        "import sys; sys.path.append(sys.argv.pop(1)); from mmpo.cli.main import run; import mmpo.cli.main as m; "
        "print(m.__file__); sys.exit(run(sys.argv[1:]))"
    )
    for arguments in (["--help"], ["--version"], ["formats"]):
        command = [str(clean / "bin" / "python"), "-c", code, borrowed, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert str(site.resolve()) in done.stdout
    code = "import sys; sys.path.append(sys.argv[1]); import mmpo; print(mmpo.__version__, mmpo.pipeline.prompt_id, dir(mmpo))"
    told = subprocess.run(
        [str(clean / "bin" / "python"), "-c", code, borrowed], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert re.match(r"0\.\d+\.\d+ <function prompt_id", told.stdout) and "'pipeline'" in told.stdout
    (site / "borrowed.pth").write_text(borrowed)
    assert seen_by_pyright(clean / "bin" / "python", tmp_path / "user.py") == []
    [entry_points] = [name for name in inside if name.endswith("entry_points.txt")]
    assert "mmpo = mmpo.cli.entry:main" in archive.read(entry_points).decode()


def test_every_command_has_help_and_stands_in_the_docs() -> None:
    from mmpo.cli.docs import page
    from mmpo.cli.main import COMMANDS, all_commands

    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == page(), "docs/cli.md is out of date: make docs"
    commands = all_commands()
    groups = {name: table for name, table in commands.items() if isinstance(table, dict)}
    summaries = [table[name][1] for table in (COMMANDS, *groups.values()) for name in table]
    assert len(summaries) == len(commands)
    assert all(summary.endswith(".") for summary in summaries)
    for name, function in commands.items():
        assert name in groups or function.__doc__
        assert f"## mmpo {name}\n" in written
