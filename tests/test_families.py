"""A new member of a family is a function or a file, and a line in the family's table: then commands list it, take it and use it.

The four folders are copied, every family gets a member `dummy`, and one process runs commands on the copy.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import graded
from folders import write_rows

from mmpo.cli.commands.lists import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
MOST_FILES = 2
JUDGE = "judge candidates --model m --base-url http://127.0.0.1:9/v1 --out judged --dry-run --json"


@dataclass(frozen=True)
class Addition:
    """A line for the family's table, and the code above the table that it needs. file: the name of another file and what it gains.

    use: a command that uses the member; shows: what it says then.
    """

    line: str = ""
    code: str = ""
    file: tuple[str, str] = ("", "")
    use: str = ""
    shows: str = ""


PARSE = '''"""A dummy format."""

from mmpo.pipeline.sources.base import SourceOptions
from mmpo.pipeline.sources.builder import FeedbackBuilder

__all__ = ["parse_dummy"]


def parse_dummy(row, out: FeedbackBuilder, options: SourceOptions) -> None:
    """A row with a prompt, a completion and a score."""
    out.prompt(row["prompt"])
    out.rating(out.completion(row["completion"]), row["score"], rater="dummy", kind="human")
'''
IMPORT = "from mmpo.pipeline.sources.dummy import parse_dummy\n"
BUILD = "build grades.jsonl --out out/{} --json --format jsonl"
ADDITIONS: dict[str, Addition] = {
    "formats": Addition(
        '"dummy": Source("dummy", "a dummy", parse=parse_dummy),', IMPORT,
        ("pipeline/sources/dummy.py", PARSE), "build grades.jsonl --out out/formats --json --format dummy", '"pairs":{"train":',
    ),
    "normalisations": Addition(
        '"dummy": Normalisation("a dummy", lambda given: {"score": given.field("score") / 2}),',
        use=BUILD + " --normalise dummy", shows='"pairs":{"train":',
    ),
    "mergers": Addition(
        '"dummy": RaterMerger("a dummy", lambda grades, starts: grades.value[starts]),',
        use=BUILD + " --raters dummy", shows='"pairs":{"train":',
    ),
    "strategies": Addition(
        '"dummy": Strategy("a dummy", _best_worst),',
        # the dummy filter takes one of the 60 pairs
        use=BUILD + " --strategy dummy --split 1,0,0", shows='"pairs":{"train":59',
    ),
    "filters": Addition(
        '"dummy": _dummy,',
        'def _dummy(table, pairs, rules):\n    """A dummy"""\n    return np.arange(len(pairs.prompt)) == 0\n\n\n',
        use=BUILD + " --seed 1", shows='"dummy":',
    ),
    "checks": Addition(
        '"dummy": Check(lambda name, totals: ("pass", 0, "said the dummy"), "a dummy"),',
        use="validate pairs --json", shows="said the dummy",
    ),
    "exports": Addition(
        '"dummy": Export("a dummy", lambda pairs, target: target.write_text("x") and "on with {out}"),',
        use="export pairs --to dummy --out out/dummy --json", shows='"to":"dummy"',
    ),
    "metrics": Addition(
        '"dummy": Metric(lambda z: 0.5, ("z",), 0.5, "a dummy"),',
        use="measure", shows='"dummy": 0.5',
    ),
    "suites": Addition(
        '"dummy": Suite("a dummy", ("subset", "score_chosen", "score_rejected"), "subset", ("one",), _first_wins, dict, _mean),',
        use="evaluate scores scores.jsonl --suite dummy --json", shows='"average":1.0',
    ),
    "modes": Addition(
        '"dummy": Mode(_pairwise, _pair_count, _gaps, template="pairwise", reply="grade", takes=("one",), reply_tokens=lambda n: 8,\n'
        '        needs="pairs", summary="a dummy", signed=True),',
        use=JUDGE + " --mode dummy", shows='"requests":',
    ),
    "rubrics": Addition(
        file=("annotate/judge/rubrics.yaml", "- {name: dummy, criterion: a dummy, scale: {1: bad, 2: good}}\n"),
        use=JUDGE + " --rubric dummy", shows='"requests":',
    ),
    "pairings": Addition(
        '"dummy": Pairing(_all, lambda n, k: _pairs(n), "a dummy"),', use=JUDGE + " --pairs dummy", shows='"requests":'),
    "replies": Addition(
        '"dummy": ReplyFormat(grade, "a dummy", "one"),', use=JUDGE + " --reply dummy", shows='"requests":'),
    "maps": Addition(
        '"dummy": _dummy,',
        'def _dummy(features, margins, answers, weight):\n    """a dummy"""\n    return _scale(features, margins, answers, weight)\n\n\n',
        use="calibrate candidates --method dummy", shows="calibrating takes a grader and people",
    ),
    "selections": Addition(
        '"dummy": Selection(_random, "", "a dummy"),',
        use="select candidates --by dummy --out out/list.jsonl --json", shows='"by":"dummy"'),
    "displays": Addition(
        '"dummy": Display(str, str, False, "a dummy"),'),
    "losses": Addition(
        'Loss("dummy", "a dummy", "nowhere", lambda z, p, margin, gamma: z),',
        use="train reward --data nowhere --out out/model --loss dummy=2", shows="nowhere",
    ),
    "targets": Addition(
        '"dummy": _dummy,',
        'def _dummy(column, gamma):\n    """a dummy"""\n    return column("quality_margin") * 0 + 0.5, {}\n\n\n',
        use="train reward --data nowhere --out out/model --target dummy", shows="nowhere",
    ),
}  # fmt: skip
RUN = """
import contextlib, io, json, sys
import numpy as np
from mmpo.cli.main import run
from mmpo.pipeline.metrics import pair_measures
answers = {}
for name, commands in json.load(sys.stdin).items():
    said = io.StringIO()
    for command in commands:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if command == ["measure"]:
                print(json.dumps(pair_measures({"z": np.ones(3), "margin": np.ones(3)})))
            else:
                run(command)
    answers[name] = said.getvalue()
print(json.dumps(answers))
"""


def add(copy: Path, family: str, addition: Addition) -> int:
    """Put a member into the copy of the folders; returns how many files that touched."""
    name, code = addition.file
    if name:
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write(code)
    if not addition.line:
        return 1
    module, _, table = FAMILIES[family].table.partition(":")
    table = "LOSSES" if family == "losses" else table  # the list has `sft` too, which is no loss of pairs
    opening = re.compile(rf"^{table}\b.*= {{.*\n(?:.*\n    for \w+ in \(\n)?", flags=re.M)
    modules = {path: path.read_text(encoding="utf-8") for path in (copy / module.split(".")[1]).rglob("*.py")}
    [(path, text, begin)] = [(path, text, begin) for path, text in modules.items() if (begin := opening.search(text))]
    # An import at the very beginning of the code would do as well; above the table everything is defined that a member may need.
    text = text[: begin.start()] + addition.code + begin.group() + f"    {addition.line}\n" + text[begin.end() :]
    path.write_text(text, encoding="utf-8")
    return 1 + bool(name)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the copy with a dummy in every family says: the family's list, the dummy's own page, and a command that uses it."""
    work = tmp_path_factory.mktemp("families")
    for folder in ("pipeline", "annotate", "train", "cli"):
        shutil.copytree(ROOT / folder, work / "mmpo" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    touched = {name: add(work / "mmpo", name, addition) for name, addition in ADDITIONS.items()}
    assert not {name: count for name, count in touched.items() if count > MOST_FILES}
    write_rows(work / "grades.jsonl", graded())
    write_rows(work / "scores.jsonl", [{"subset": "one", "score_chosen": 2, "score_rejected": 1}])
    (work / "out").mkdir()
    build = shlex.split("build grades.jsonl --format jsonl --out")
    commands = {"": [[*build, "pairs"], [*build, "candidates", "--feedback-only"]]}
    for name, addition in ADDITIONS.items():
        use = [shlex.split(addition.use.format(name))] if addition.use else []
        commands[name] = [["list", name], ["list", name, "dummy"], *use]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(commands), cwd=work, env={"PYTHONPATH": str(work), "OPENAI_API_KEY": "none"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_family_of_mmpo_list_is_tried() -> None:
    assert set(ADDITIONS) == set(FAMILIES)


@pytest.mark.parametrize("family", ADDITIONS)
def test_a_new_member_is_listed_and_used(family: str, answers: dict[str, str]) -> None:
    said = answers[family]
    assert len(re.findall(r"^dummy\s+a dummy", said, flags=re.M | re.I)) == 2, said
    assert ADDITIONS[family].shows in said and "error: unknown" not in said and "Traceback" not in said, said
