"""What every command refuses (exit status 2, one message, nothing written); bad rows, a full disk and Ctrl-C in a build."""

import gzip
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import graded, mmpo, refused, stopped
from folders import write_rows

from mmpo.annotate import GenerateOptions, JudgeOptions
from mmpo.annotate.argilla.options import PushOptions
from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, UserError
from mmpo.pipeline.options import fields_of, options_from
from mmpo.train.options import TrainOptions

BUILD = "build grades.jsonl --format jsonl --out out"
# The port `discard`: nobody listens; none of these may get so far as to ask.
JUDGE = "judge candidates --base-url http://127.0.0.1:9/v1 --out out"
AGREE = "agree people --json"
REFUSALS: dict[str, list[tuple[str, ...]]] = {
    BUILD: [
        ("--strategy everything", "--strategy: 'everything'", "best-worst"),
        ("--strategy adjacant", "did you mean 'adjacent'?"),
        ("--normalise zscores", "--normalise: 'zscores'", "did you mean 'zscore'?"),
        ("--ties maybe", "--ties: 'maybe'"),
        ("--from votes", "--from: 'votes'"),
        ("--raters mode", "--raters: 'mode'", "rater-effects"),
        ("--rater-weights equal", "only --raters rater-effects weighs raters"),
        ("--raters rater-effects --rater-weights none", "'fitted' or 'equal'"),
        ("--one-order both", "--one-order: 'both'"),
        ("--split 0.5,0.2,0.1", "--split 0.5,0.2,0.1"),
        ("--split .8,.2", "--split: .8,.2 has too few values", "0.9,0.05,0.05"),
        ("--scale 1-5", "--scale: 1-5 has too few values", "1:10"),
        ("--min-raters -1", "--min-raters: '-1' is not 0 or more"),
        ("--split-by colum", "did you mean 'column:NAME'?"),
        ("--scale 10:1", "--scale 10:1"),
        ("--max-rejects 2", "--max-rejects: '2'"),
        ("--min-margin -1", "--min-margin: '-1'"),
        ("--max-per-prompt 0", "--max-per-prompt: '0' is not 1 or more"),
        ("--seed x", "--seed: 'x' is not a whole number"),
        ("--columns ''", "--columns is empty", "shell variable that is not set", "leave it out"),
        ("--columns prompt=", "prompt= is empty"),
        ("--rater=", "--rater is empty"),
        ("--out ''", "--out is empty"),
        ("''", "an argument is empty"),
        ("--columns nonsense", "--columns: 'nonsense' is not of the form name=value"),
        ("--columns grade=score", "--columns", "grade"),
        ("--columns score=grade", "grade", "completion"),
        ("--no-such-flag", "--no-such-flag"),
        ("--fromat csv", "--fromat; did you mean --format or --from?"),
    ],
    f"{JUDGE} --model m": [
        ("--base-url ''", "--base-url is empty", "shell variable that is not set"),
        ("--base-url ' http://127.0.0.1:9/v1'", "' http://127.0.0.1:9/v1' begins or ends with white space"),
        ("--header X-Team=", "X-Team= is empty"),
        ("--mode pairs", "pairwise"),
        ("--pairs some", "best-worst"),
        ("--pairs random", "random:4"),
        ("--orders three", "both"),
        ("--rubric helpfullness", "helpfulness"),
        ("--rubric mine.yaml", "mine.yaml"),
        ("--template mine.j2", "mine.j2"),
        ("--reply json", "aspects-json"),
        ("--reply ranking --mode pointwise", "it is for pairwise and listwise"),
        ("--logprobs yes", "need"),
        ("--samples 0", "--samples: '0' is not 1 or more"),
        ("--show 0", "--show: Input should be greater than or equal to 1"),
        ("--min-mass 1.5", "1 or less"),
        ("--temperature 3", "2 or less"),
        ("--concurrency -1", "1 or more"),
        ("--timeout soon", "--timeout"),
        ("--extra-body {x", "JSON"),
        ("""--extra-body '{"n": 3}'""", "set by the run"),
        ("--max-cost 1", "--prices"),
        ("--prices nowhere.yaml", "nowhere.yaml"),
        ("--base-url localhost:8000", "http://127.0.0.1:8000/v1"),
        ("--base-url http://me:secret@127.0.0.1/v1", "environment variable"),
        ("--judge m", "not both"),
        ("--api-key sk-1234567890", "--api-key"),
    ],
    JUDGE: [
        ("", "--model"),
        ("--judge m --judge m", "rater="),
        ("--judge m,base=x", "base_url"),
        ("--judge m,base_url", "key=value"),
        ("--judge ,rater=x", "needs a model"),
        ("--judge m,concurrency=many", "number"),
    ],
    AGREE: [
        ("--rater anotator-1", "did you mean 'annotator-1'"),
        ("--against gpt", "unknown --against 'gpt'"),
        ("--from ratings", "it has comparisons: use --from comparisons"),
        ("--from both", "holds no ratings"),
        ("--bootstrap=-5", "--bootstrap -5: must be a whole number from 0 up"),
    ],
    "": [
        ("build nowhere.jsonl --format jsonl --out out", "nowhere.jsonl"),
        ("build grades.jsonl --format jsnl --out out", "unknown format 'jsnl'", "did you mean 'jsonl'"),
        *((f"build grades.jsonl --format {name} --out out", name)
          for name in ("ultrafeedback", "shp", "alpaca-eval", "ultrafeedback-binarized")),
        ("build cut.jsonl.gz --format jsonl --out out", "cut.jsonl.gz"),
        ("build cut.parquet --format parquet --out out", "cut.parquet"),
        ("build single.jsonl --format jsonl --out out", "no pair", "single_completion 30"),
        ("build empty.jsonl --format jsonl --out out",),
        ("build grades.jsonl --format jsonl --out thesis", "thesis", "holds something else"),
        ("judge nowhere --model m --out out", "nowhere"),
        ("judge grades.jsonl --model m --out out", "grades.jsonl is a file, no dataset folder"),
        ("judge candidates --model m --out candidates", "is the input itself"),
        ("judge pairs --model m --out out", "--feedback-only"),
        (f"{JUDGE} --model m --out thesis", "thesis"),
        ("judge candidates --model gpt-4o-mini --out out", "OPENAI_API_KEY", "export"),
        ("judge candidates --model m --api-key-env MINE --out out", "MINE"),
        ("agree pairs", "holds pairs, no FEEDBACK"),
        ("agree nowhere", "no such dataset folder"),
        ("validate pairs --gamma -1", "gamma"),
        ("validate nowhere", "nowhere"),
        ("report nowhere", "nowhere"),
        ("gamma nowhere", "nowhere"),
        ("export nowhere --to jsonl --out x", "nowhere"),
        ("export pairs --to trl --out x", "trl-dpo"),
        ("train reward --out model", "--data is needed"),
        ("train reward --data pairs --out model --gamma -1", "--gamma: '-1' is not 0 or more"),
        ("train reward --data pairs --out model --loss mmop", "did you mean 'mmpo'"),
        ("list formts", "did you mean 'formats'"),
        ("formats shq", "unknown format 'shq'", "did you mean 'shp'"),
    ],
}  # fmt: skip
"""The beginning of a command → its endings, each with the words that the message must hold."""
CASES = [(f"{start} {end}".strip(), words) for start, ends in REFUSALS.items() for end, *words in ends]


@pytest.fixture(scope="module")
def here(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good input and bad; nothing in it may change."""
    folder = tmp_path_factory.mktemp("refusals")
    write_rows(folder / "grades.jsonl", graded())
    write_rows(folder / "single.jsonl", graded(30, answers=1))
    write_rows(folder / "empty.jsonl", [])
    packed = gzip.compress(write_rows(folder / "cut.jsonl", graded(400)).read_bytes())
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    whole = write_rows(folder / "cut.parquet", graded(400)).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:-200])
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.txt").write_text("mine")
    build = ["build", str(folder / "grades.jsonl"), "--format", "jsonl"]
    assert run([*build, "--out", str(folder / "pairs")]) == 0
    assert run([*build, "--out", str(folder / "candidates"), "--feedback-only"]) == 0
    people = [str(root / "data" / "human_graded_pairs.jsonl"), "--format", "jsonl", "--scale=-2:2", "--rater-kind", "human"]
    assert run(["build", *people, "--out", str(folder / "people"), "--feedback-only"]) == 0
    return folder


@pytest.mark.parametrize(("command", "words"), CASES, ids=[command for command, _ in CASES])
def test_refused(
    command: str, words: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    for name in ("OPENAI_API_KEY", "MINE"):
        monkeypatch.delenv(name, raising=False)
    assert "secret" not in refused(shlex.split(command), here, capsys, *words)


# Bad rows are counted, and limited; nothing half-written is left


def build(source: Path, out: Path, *more: str) -> list[str]:
    return ["build", str(source), "--format", "jsonl", "--out", str(out), *more]


@pytest.mark.parametrize(
    "bad",
    [b"\xff\xfe broken", b"[1, 2]", b"{not json", b'{"prompt": "p", "completion": "c", "score": NaN}'],
    ids=["utf8", "no object", "malformed", "nan"],
)
def test_a_file_of_bad_lines_is_refused_and_one_line_costs_one_line(
    bad: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    half, one = (write_rows(tmp_path / f"{name}.jsonl", graded(count)) for name, count in (("half", 20), ("one", 100)))
    half.write_bytes((bad + b"\n") * 30 + half.read_bytes())
    refused(build(half, out), tmp_path, capsys)
    one.write_bytes(one.read_bytes() + bad + b"\n")
    assert run([*build(one, out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert sum(summary["rejected"].values()) == 1
    assert sum(summary["pairs"].values()) == 300
    [reject] = pq.read_table(out / "rejects.parquet").to_pylist()
    assert (
        (reject["unit"], reject["row"]) == ("line", 301)
        and reject["reason"] in summary["rejected"]
        and "one.jsonl" in reject["file"]
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": "good"}, "score_not_a_number"),
        ({"score": 11}, "score_out_of_scale"),
        ({"completion": ""}, "empty_completion"),
        ({"score": True}, "score_not_a_number"),
    ],
)
def test_bad_values_are_rejected_rows_and_many_of_them_stop_the_build(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    many = write_rows(tmp_path / "many.jsonl", [{**row, **change} if i % 2 else row for i, row in enumerate(graded(60))])
    refused(build(many, out, "--scale", "1:10"), tmp_path, capsys, "90 of 180 lines", reason, "line 2")
    assert run([*build(many, out, "--scale", "1:10", "--max-rejects", "0.6"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"][reason] == 90
    every = write_rows(tmp_path / "every.jsonl", [{**row, **change} for row in graded(6)])
    for most in ("0.5", "1"):
        told = refused([*build(every, out, "--scale", "1:10"), "--max-rejects", most], tmp_path, capsys, "18 of 18 lines", reason)
        assert told.strip().endswith("Mend the input: nothing of it is left, whatever --max-rejects allows")


@pytest.mark.parametrize("kind", [BuildOptions, GenerateOptions, JudgeOptions, TrainOptions, PushOptions])
def test_no_option_that_holds_text_takes_an_empty_one_for_its_default(kind: type) -> None:
    """In Python and in recipes, as on the command line: an address that is an unset variable must not become the public one."""
    needed = {"format": "jsonl"} if kind is BuildOptions else {"kind": "policy"} if kind is TrainOptions else {}
    for name, field in fields_of(kind).items():
        if field.get_default(call_default_factory=True) != "":
            with pytest.raises(UserError):
                options_from(kind, needed | {name: ""})


@pytest.mark.parametrize("kind", [BuildOptions, GenerateOptions, JudgeOptions, TrainOptions, PushOptions])
def test_an_option_of_a_form_says_what_it_may_be_by_examples(kind: type) -> None:
    """Never by the bare pattern; and its examples are of the form."""
    for name, field in fields_of(kind).items():
        patterns = [one.pattern for one in field.metadata if getattr(one, "pattern", None)]
        for pattern in patterns:
            assert field.examples and all(re.search(pattern, str(one)) for one in field.examples), name


@pytest.mark.parametrize("given", ["top:0", "bottom:2", "top:"])
def test_the_trainable_layers_are_named_by_what_they_may_be(given: str) -> None:
    with pytest.raises(UserError) as caught:
        options_from(TrainOptions, {"kind": "policy", "trainable": given}, flags=True)
    assert str(caught.value).startswith(
        f"--trainable: '{given}' is not of the form of all, head or top:4; it is: all, or top:N, N from 1 up: "
    )


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    # A limit on the size of a file stands for the full disk: writing fails with an OSError in the same places.
    source, out = write_rows(tmp_path / "many.jsonl", graded(4_000)), tmp_path / "out"
    done = mmpo(*build(source, out), disk=20_000)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


@pytest.mark.parametrize(("by", "status", "said"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")])
def test_ended_from_outside_says_so_in_one_line_and_leaves_nothing(tmp_path: Path, by: int, status: int, said: str) -> None:
    source, out = write_rows(tmp_path / "many.jsonl", graded(40_000, answers=4)), tmp_path / "out"
    done = stopped(*build(source, out), "--workers", 2, when=lambda: len(list(tmp_path.iterdir())) > 1, by=by, after=0.3)
    assert (done.returncode, done.stderr) == (status, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.jsonl"]


@pytest.mark.parametrize("module", ["typer", "pyarrow", "mmpo.cli.commands.data.build"])
@pytest.mark.parametrize(("by", "status", "said"), [("SIGINT", 130, "interrupted\n"), ("SIGTERM", 143, "terminated\n")])
def test_ended_while_modules_are_imported(module: str, by: str, status: int, said: str) -> None:
    code = f"""
import signal, sys
class Stop:
    def find_spec(self, name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.{by})
sys.meta_path.insert(0, Stop())
from mmpo.cli.entry import main
main()
"""
    line = [sys.executable, "-c", code, "build", "nowhere.jsonl", "--format", "jsonl", "--out", "out"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, said)
