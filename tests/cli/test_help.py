"""What `--help` and the shells' completion say, how fast, and what -q and -v leave out and add."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from command import MAIN, graded, mmpo
from folders import write_rows

from mmpo.cli.completion import FILE, answer
from mmpo.cli.docs import commands, completions
from mmpo.cli.groups import COMMAND_GROUPS, GROUPS, groups_of
from mmpo.cli.help import COMMON, help_of
from mmpo.cli.main import CALLED_ELSEWHERE, COMMANDS, run

KNOWN = commands()
MOST_AT_FIRST, FEW = 12, 16


def options_of(name: str) -> list[str]:
    command, context = KNOWN[name]
    return [one.name for one in command.get_params(context) if one.param_type_name == "option" and one.name not in COMMON]


@pytest.mark.parametrize("name", KNOWN)
def test_help_fits_eighty_columns_with_whole_words(name: str) -> None:
    command, context = KNOWN[name]
    for everything in (False, True):
        text = help_of(command, context, everything=everything, width=80)
        assert [line for line in text.splitlines() if len(line) > 80] == []
        assert not [line for line in text.splitlines() if line.endswith("-")]  # a word cut at its hyphen
    words = text.split()
    for one in command.get_params(context):
        if one.param_type_name == "option" and one.name != "help_all":
            assert {flag for flag in one.opts if not {flag, f"{flag},"} & set(words)} == set()
            assert set(one.help.split()) <= set(words), f"--help-all cuts a word of {one.opts[0]}"


@pytest.mark.parametrize("name", KNOWN)
def test_options_stand_in_one_group_each_and_the_first_are_few(name: str) -> None:
    options = options_of(name)
    groups, first = groups_of(name, options)
    assert len(first) <= (MOST_AT_FIRST if name in GROUPS else FEW)
    if name in GROUPS:
        named = [option for names in GROUPS[name].values() for option in names.replace("|", "").split()]
        assert sorted(named) == sorted(options), f"GROUPS[{name!r}] in cli/groups.py: each option once, and no other"
        assert "other" not in groups


def test_every_command_stands_in_one_group() -> None:
    assert sorted(name for names in COMMAND_GROUPS.values() for name in names.split()) == sorted(COMMANDS)


def test_what_help_leaves_to_help_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "--help"]) == 0
    short = capsys.readouterr().out
    assert run(["build", "--help-all"]) == 0
    long = capsys.readouterr().out
    assert "Options that matter most:" in short and "mmpo build --help-all explains them" in short
    assert "evaluation prompt's words" not in short and "evaluation prompt's words" in long
    assert all(f"\n{title}:\n" in long for title in ("Input", "Grades", "Pairs", "Output"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train reward --gama 2", "No such option: --gama; did you mean --gamma?"),
        ("build x --colums a=b", "did you mean --columns?"),
        ("judge rows --modle m", "did you mean --mode or --model?"),
        *(
            (f"train reward {given} x", f"did you mean {ours}?")
            for given, ours in {
                "--lr": "--learning-rate",
                "--learning_rate": "--learning-rate",
                "--batch-size": "--pairs-per-step",
                "--per_device_train_batch_size": "--pairs-per-step",
                "--num-train-epochs": "--epochs",
                "--model-name-or-path": "--model",
                "--dataset-name": "--data",
                "--output-dir": "--out",
                "--lora-r": "--lora",
                "--lora-rank": "--lora",
                "--max-prompt-len": "--max-prompt-length",
            }.items()
        ),
        ("build rows --output-dir x", "did you mean --out?"),
        ("build rows --seperator x", "did you mean --sep?"),
        ("biuld", "Did you mean 'build'?"),
        ("evaluate polcy", "Did you mean 'policy'?"),
    ],
)
def test_the_nearest_name_is_offered(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert words in capsys.readouterr().err


def test_what_others_call_an_option_leads_to_one_that_there_is() -> None:
    flags = {flag for command, _ in KNOWN.values() for one in command.params for flag in one.opts}
    assert set(CALLED_ELSEWHERE.values()) <= flags


def test_completions_are_up_to_date(root: Path) -> None:
    text = FILE.read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(completions()), "make docs"
    if f"typer=={version('typer')}\n" in (root / "constraints.txt").read_text(
        encoding="utf-8"
    ):  # others may list options in another order
        assert text == completions(), "make docs"


def completed(line: str, *, shell: str = "bash", code: str = MAIN) -> list[str]:
    """What a shell is told for a line whose last word is being written."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_TYPER_COMPLETE_ARGS": line}
    environment = {**os.environ, **words, "_MMPO_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmpo bui", ["build"]),
        ("mmpo build x --strategy be", ["best-worst", "best-random"]),
        ("mmpo build x --format ultra", ["ultrafeedback", "ultrafeedback-binarized"]),
        ("mmpo train ", ["policy", "reward"]),
        ("mmpo evaluate mt", ["mt-bench"]),
        ("mmpo argilla push x --sel", ["--select"]),
        ("mmpo list form", ["formats"]),
        ("mmpo list mergers me", ["mean", "median"]),
        ("mmpo build some/fil", []),  # the shell's own: files
    ],
)
def test_shells_are_told(line: str, expected: list[str]) -> None:
    assert completed(line) == (expected or [""])


def lines() -> Iterator[str]:
    """Of every command: its members, its options, what each of them may be, and the rest behind one that is given."""
    for name, (command, _) in {"": (None, None), **KNOWN}.items():
        line = f"mmpo {name}".strip()
        yield from (line, f"{line} ", f"{line} -q ", f"{line} x --", f"{line} x y ", f"{line} nothing - ")
        for one in command.params if command else ():
            flag = one.opts[0]
            if flag.startswith("-"):
                yield from (f"{line} x {flag} ", f"{line} {flag} m", f"{line} {flag} m --", f"{line} {flag[:6]}")
                yield from () if one.is_flag else (f"{line} {flag}=", f"{line} {flag}=r --")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_are_told_what_typer_would_tell_them(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MMPO_COMPLETE", f"complete_{shell}")
    asked, answered = [*lines()][:: 11 if shell == "bash" else 53], 0
    for line in asked:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        found = answer()
        if found is not None:
            answered += 1
            with pytest.raises(SystemExit):
                run([])
            said = capsys.readouterr().out
            names = (
                r'(?m)^(?:_arguments .*\(\()?"([^"]+)":?' if shell == "zsh" else r"(?m)^.+$"
            )  # typer breaks help for zsh into lines
            assert sorted(re.findall(names, found)) == sorted(re.findall(names, said)), line
    assert answered > 0.95 * len(asked)


def test_a_completion_imports_nothing_that_is_slow() -> None:
    slow = "('typer', 'torch', 'pyarrow', 'numpy', 'pandas', 'rich', 'mmpo.pipeline')"
    code = f"import atexit, sys; atexit.register(lambda: print([name for name in {slow} if name in sys.modules])); {MAIN}"
    assert completed("mmpo train policy --gam", code=code) == ["--gamma", "[]"]


def test_bash_takes_the_script(tmp_path: Path) -> None:
    (tmp_path / "mmpo").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{MAIN}' \"$@\"\n")
    (tmp_path / "mmpo").chmod(0o755)
    asked = 'eval "$(mmpo --show-completion)"; COMP_WORDS=(mmpo judge --mo); COMP_CWORD=2; _mmpo_completion mmpo; echo "${COMPREPLY[@]}"'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert sorted(done.stdout.split()) == ["--mode", "--model"], done.stderr


def cpu_seconds(*words: str, **environment: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, env={**os.environ, **environment}, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_costs_little_more_than_typer_and_rich_and_completion_is_quick() -> None:
    typed = {"_MMPO_COMPLETE": "complete_bash", "COMP_WORDS": "mmpo build --st", "COMP_CWORD": "2"}
    base, helped, complete = [], [], []
    for _ in range(5):  # in turns, of which the least counts: another process can only add
        base.append(cpu_seconds("-c", "import typer, rich.console, rich.table"))
        helped.append(cpu_seconds("-c", MAIN, "--help"))
        complete.append(cpu_seconds("-c", MAIN, **typed))
    assert min(helped) < 1.5 * min(base)
    assert min(complete) < max(0.3, min(base))  # on a machine that is slow at anything


def test_quiet_and_verbose_mean_the_same_everywhere(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "grades.jsonl", [*graded(20), {"prompt": "One?", "completion": "a", "score": None}])
    build = ("build", source, "--format", "jsonl", "--max-rejects", "1", "--out")
    plain = mmpo(*build, tmp_path / "plain")
    quiet = mmpo(*build, tmp_path / "quiet", "-q", "--json")
    first = mmpo("-q", *build, tmp_path / "first")
    verbose = mmpo(*build, tmp_path / "verbose", "--verbose")
    assert "20 prompts" in plain.stderr and "took" not in plain.stderr
    assert quiet.stderr == first.stderr == "" and json.loads(quiet.stdout)["prompts"] == 20
    assert "options given: format=jsonl, max_rejects=1" in verbose.stderr and "CPU seconds" in verbose.stderr
    failed = mmpo("build", tmp_path / "none.jsonl", "--format", "jsonl", "--out", tmp_path / "x", "-q")
    assert failed.returncode == 2 and failed.stderr.startswith("error: ")
    assert "Traceback" in mmpo("build", tmp_path / "none.jsonl", "--format", "jsonl", "--out", tmp_path / "x", "-v").stderr


def test_a_quiet_run_in_this_process_leaves_the_next_one_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "-q"]) == 0
    assert "MMPO_QUIET" not in os.environ


def test_version_names_what_is_installed_and_imports_none_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    code = f"import atexit, sys; atexit.register(lambda: print('pyarrow' in sys.modules)); {MAIN}"
    told = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    import pyarrow

    lines = told.splitlines()
    assert lines[0].startswith("mmpo ") and lines[1] == f"python {sys.version.split()[0]}" and lines[-1] == "False"
    assert f"pyarrow {pyarrow.__version__}" in lines
