"""docs/python.md is run, top to bottom, against a server on this machine; and no public name is left out of it."""

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openai_server import serving

import mmpo.annotate
import mmpo.pipeline
import mmpo.train
from mmpo.pipeline import PAIRS, UserError

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


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda given: mmpo.pipeline.build("grades.jsonl", "out", options=given), "BuildOptions"),
        (lambda given: mmpo.annotate.judge("people", "out", options=given), "JudgeOptions"),
        (lambda given: mmpo.annotate.generate("prompts.jsonl", "out", options=given, models=["m"]), "GenerateOptions"),
        (lambda given: mmpo.annotate.mt_bench("out", options=given, models=["m"]), "MtBenchOptions"),
        (mmpo.train.train_reward, "TrainOptions"),
    ],
)
def test_options_of_another_kind_are_named(call: Callable[[Any], Any], kind: str) -> None:
    with pytest.raises(UserError, match=rf"options are a dict, \{{'format': 'jsonl'\}}: give {kind}\(\*\*options\)"):
        call({"format": "jsonl"})
    with pytest.raises(UserError, match=rf"options are a str, 'jsonl': give {kind}\(\.\.\.\)"):
        call("jsonl")


def test_texts_in_place_of_messages_and_shares_are_refused_in_words() -> None:
    with pytest.raises(TypeError, match="prompt_id takes messages"):
        mmpo.pipeline.prompt_id("Hi")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--split 80:10:10: give three shares"):
        mmpo.pipeline.write_dataset(PAIRS.empty_table(), "out", split="80:10:10")  # type: ignore[arg-type]
