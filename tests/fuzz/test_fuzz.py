"""Whatever comes in: done, counted rejects, or one message and status 2; never a traceback, nothing half-written, counts balance.

200 seeded tries, in this process; `make fuzz` makes 2,000 and writes docs/fuzz.md. A try again: MMPO_FUZZ=417:418 pytest tests/fuzz.
"""

import json
import os
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import contents, feedback_folder, pairs_folder

from fuzz import inputs
from mmpo.annotate.exports import EXPORTS
from mmpo.cli.main import run
from mmpo.pipeline.storage import read_manifest

ASKED = os.environ.get("MMPO_FUZZ", "200")
FIRST, LAST = (int(part) for part in (ASKED if ":" in ASKED else f"0:{ASKED}").split(":"))
PORTION = 20

Words = list[str]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset folders as they should be: "pairs", "feedback", "candidates"."""
    folder = tmp_path_factory.mktemp("good")
    rows = [row for seed in range(3) for row in inputs.good_rows(random.Random(seed), "rating")]
    pairs_folder(folder / "pairs", rows, scale=(0, 5), split=(0.6, 0.2, 0.2))
    feedback_folder(folder / "feedback", rows, scale=(0, 5))
    feedback_folder(folder / "candidates", 5)
    return folder


def _options(pick: random.Random, allowed: dict[str, list[str]], most: int = 4) -> Words:
    names = pick.sample(sorted(allowed), min(len(allowed), pick.randrange(most)))
    return [word for name in names for word in (name, inputs.option_value(pick, allowed[name]))]


def _build(pick: random.Random, good: Path, folder: Path) -> Words:
    source, known = inputs.source_file(pick, folder)
    allowed = {
        "--scale": ["1:5", "0:10", "-5:5"], "--normalise": ["none", "minmax", "zscore", "log", "rank"],
        "--strategy": ["best-worst", "adjacent"],
        "--raters": ["mean", "median", "rater-effects"], "--split": ["1,0,0", ".5,.3,.2"], "--ties": ["drop"], "--min-margin": ["1"],
        "--columns": ["prompt=question", "score=prompt"], "--max-rejects": ["1", "0", ".5"], "--min-raters": ["1"], "--rater": ["ann"],
        "--split-by": ["prompt", "column:rater"], "--max-per-prompt": ["1"], "--score": ["mean", "overall=2"], "--from": ["ratings"],
    }  # fmt: skip
    return ["build", str(source), "--format", known, "--out", str(folder / "out"), *_options(pick, allowed)]


def _of_feedback(pick: random.Random, good: Path, folder: Path) -> Words:
    made = inputs.dataset(pick, good / "feedback", folder)
    out = str(folder / "out")
    return pick.choice(
        [
            ["build", str(made), "--format", "feedback", "--out", out, *_options(pick, {"--normalise": ["minmax", "rank"]})],
            ["agree", str(made), "--bootstrap", "20", *_options(pick, {"--against": ["ann", "ben"], "--aspect": ["overall"]})],
            ["validate", str(made)],
        ]
    )


def _judge(pick: random.Random, good: Path, folder: Path) -> Words:
    made = inputs.dataset(pick, good / "candidates", folder)
    allowed = {"--mode": ["pointwise", "listwise"], "--pairing": ["all", "star"], "--max-cost": ["1"], "--rubric": ["overall"]}
    words = ["judge", str(made), "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--out", str(folder / "out"), "--dry-run"]
    return words + _options(pick, allowed)


def _of_pairs(pick: random.Random, good: Path, folder: Path) -> Words:
    made, out = str(inputs.dataset(pick, good / "pairs", folder)), str(folder / "out")
    return pick.choice(
        [
            ["validate", made, *_options(pick, {"--gamma": ["1", "auto"]})],
            ["report", made, "--out", out],
            ["gamma", made],
            ["rejects", made],
            ["export", made, "--to", inputs.option_value(pick, list(EXPORTS)), "--out", out],
        ]
    )


def _train(pick: random.Random, good: Path, folder: Path) -> Words:
    made = inputs.dataset(pick, good / "pairs", folder)
    kind = pick.choice(["reward", "policy"])
    allowed = {
        "--loss": ["dpo", "mmpo=1,sft=0.1"],
        "--gamma": ["auto", "2"],
        "--target": ["plain", "noise-aware"],
        "--max-length": ["64"],
    }
    words = ["train", kind, "--data", str(made), "--model", "tiny", "--out", str(folder / "out"), "--max-steps", "1"]
    return words + _options(pick, allowed)


def _recipe(pick: random.Random, good: Path, folder: Path) -> Words:
    source = folder / "good.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in inputs.good_rows(pick, "rating")))
    return ["run", str(inputs.recipe(pick, source, folder))]


COMMANDS: dict[str, tuple[int, Callable[[random.Random, Path, Path], Words]]] = {
    "build": (8, _build),
    "of feedback": (4, _of_feedback),
    "judge": (2, _judge),
    "of pairs": (5, _of_pairs),
    "train": (1, _train),
    "recipe": (3, _recipe),
}
"""What is tried, how often for one another, and the command line that a seed makes."""


def tried(seed: int, good: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    """Make the input of a seed and run its command: its name and exit status. Raises AssertionError where a promise is broken."""
    pick = random.Random(seed)
    name = pick.choices(list(COMMANDS), [weight for weight, _ in COMMANDS.values()])[0]
    words = COMMANDS[name][1](pick, good, folder)
    before = contents(folder)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries below
        status = run(words)
    said = capsys.readouterr()
    told = f"seed {seed}: {' '.join(words)}\n{said.err[-700:]}"
    assert status in (0, 2, 3) and "Traceback" not in said.err, told
    assert "\x1b" not in said.out + said.err, told
    after = contents(folder)
    assert {path: data for path, data in after.items() if path in before} == before, f"inputs changed\n{told}"
    new = {path.split("/")[0] for path in after.keys() - before.keys()}
    trains = name in ("train", "recipe")  # which also keeps token ids beside a dataset
    kept = ({"out", "out.html"} if status == 0 or trains else set()) | ({"dataset.tokens"} if trains else set())
    assert new <= kept, f"left behind: {new}\n{told}"
    if status == 0 and words[0] == "build":
        for stage, units in read_manifest(folder / "out")["counts"].items():
            for unit, counts in units.items():
                gone = counts["out"] + counts["merged"] + sum(counts["dropped"].values())
                assert counts["in"] + counts["created"] == gone, f"{stage} {unit} does not balance\n{told}"
    return words[0], status


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, LAST, PORTION))
def test_every_input_ends_in_a_result_or_in_one_message(
    first: int, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    ends: Counter[tuple[str, int]] = Counter()
    broken = []
    for seed in range(first, min(first + PORTION, LAST)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            ends[tried(seed, good, folder, capsys)] += 1
        except AssertionError as error:
            broken.append(str(error))
        shutil.rmtree(folder)
    if record := os.environ.get("MMPO_FUZZ_RECORD"):
        with open(record, "a", encoding="utf-8") as file:
            file.writelines(f"{command} {status}\n" for (command, status), n in ends.items() for _ in range(n))
            file.writelines("(any) 1\n" for _ in broken)
    assert not broken, "\n\n".join(broken)
