"""Text that looks like markup or moves a terminal: inert on Argilla's page, the same when it comes back, never raw on a terminal."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from argilla_cases import Asked, answer, comparisons, feedback, name, pulled, pushed
from argilla_fixture import Argilla
from argilla_markers import CONTROL, MARKERS
from cases import environment, mmpo

from mmpo.pipeline import load_feedback
from mmpo.pipeline.errors import UserError

TEXTS = (
    *MARKERS,
    "![p][r]\n\n[r]: http://127.0.0.1:9/ref.png",
    "<\u2060b> already joined &\u2060amp; !\u2060[x](y) $\u2060 data\u2060: &amp;lt;",
)
BEGINS_MARKUP = re.compile(r"<[A-Za-z/!?]|&[#A-Za-z]|!\[|(?i:javascript|vbscript|data):")
"""What would begin a tag, an entity, a picture or a link of its own, were it not broken."""
NOTE = f"because {MARKERS[0]} {MARKERS[4]}"


def marked(folder: Path) -> Path:
    """FEEDBACK with such text as prompt, replies, models and the judge's name."""
    rows = [
        {"prompt": [{"role": "system", "content": text}, {"role": "user", "content": f"{text} {i}"}],
         "completions": [text, f"{text}!"], "models": [text, f"m{text}"], "scores": [1, 5], "rater": text}
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    flat = [
        {"prompt": row["prompt"], "completion": text, "model": model, "score": score, "rater": row["rater"]}
        for row in rows
        for text, model, score in zip(row["completions"], row["models"], row["scores"])
    ]
    return feedback(folder, flat, scale=(1, 5), kind="ai")


def shown(record: dict[str, Any]) -> list[str]:
    """Every text that the page puts on the screen."""
    fields = record["fields"]
    return [one["content"] for one in fields["prompt"]] + [text for own, text in fields.items() if own.startswith("reply_")]


@pytest.mark.parametrize("display", ["plain", "markdown"])
def test_the_data_of_the_page_is_inert_and_comes_back_to_the_letter(argilla: Argilla, tmp_path: Path, display: str) -> None:
    data, dataset = marked(tmp_path / "f"), name()
    summary = pushed(argilla, data, dataset, suggest=True, display=display)
    assert (summary["sent"], summary["suggested"], summary["finished"]) == (len(TEXTS), len(TEXTS), True)
    argilla.annotator("anna")
    with argilla.as_user("anna") as anna:
        path = f"/api/v1/me/datasets/{Asked(argilla, dataset).dataset['id']}/records/search"
        seen = anna.post(path, json={}, params={"include": ["suggestions"]}).raise_for_status().json()["items"]
    assert len(seen) == len(TEXTS)
    for one in seen:
        assert not one["record"]["metadata"]
        for text in shown(one["record"]):
            if display == "plain":
                assert "<" not in text and not re.search(r"&(?!amp;|lt;|gt;)", text)
            else:
                assert not BEGINS_MARKUP.search(text)
        assert re.fullmatch(r"[A-Za-z0-9_:./\s-]+", one["record"]["suggestions"][0]["agent"])
    for record in Asked(argilla, dataset).records():
        answer(argilla, "anna", record, grade="1", rationale=NOTE)
    pulled(argilla, dataset, tmp_path / "out")
    pushed_rows = {row["prompt_id"]: row for row in load_feedback(data).to_pylist()}
    pulled_rows = {row["prompt_id"]: row for row in load_feedback(tmp_path / "out").to_pylist()}
    assert set(pulled_rows) == set(pushed_rows)
    for own, row in pulled_rows.items():
        assert (row["prompt"], row["completions"]) == (pushed_rows[own]["prompt"], pushed_rows[own]["completions"])
    assert {one["note"] for one in comparisons(tmp_path / "out")} == {NOTE}


def test_no_control_character_reaches_a_terminal(argilla: Argilla, tmp_path: Path) -> None:
    """A user, a dataset, texts and reasons with escape sequences: neither push nor pull nor agree nor an error prints one."""
    user, dataset = "eve\x1b[31m\u202e<b>", f"{name()} \x1b]0;title\x07<b>"
    data, out = marked(tmp_path / "f"), tmp_path / "out"
    env = environment(ARGILLA_API_KEY=argilla.owner_key, ARGILLA_API_URL=argilla.api_url)
    common = ["--dataset", dataset, "--workspace", argilla.workspace]
    done = mmpo("argilla", "push", str(data), *common, "--suggest", env=env)
    assert done.returncode == 0, done.stderr
    outputs = [done.stderr]
    for record in Asked(argilla, dataset).records():
        answer(argilla, user, record, grade="2", rationale=MARKERS[4])
        answer(argilla, "anna", record, grade="1")
    done = mmpo("argilla", "pull", *common, "--out", str(out), "--real-names", "--json", env=env)
    assert done.returncode == 0, done.stderr
    outputs += [done.stderr, done.stdout]
    assert len(json.loads(done.stdout)["raters"]) == 2
    outputs.append(mmpo("agree", str(out), env=env).stderr)
    for space in (argilla.workspace, "w\x1b[2J"):
        wrong = ["--dataset", "no\x1b[2J", "--workspace", space, "--out", str(tmp_path / "none")]
        outputs.append(mmpo("argilla", "pull", *wrong, env=env).stderr)
    assert all(outputs)
    assert not [found for output in outputs for found in CONTROL.findall(output)]
    assert {one["rater"] for one in comparisons(out)} == {"anna", "eve\\x1b[31m\\u202e<b>"}


def test_what_argilla_refuses_is_told_without_escape_sequences(argilla: Argilla, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pushed(argilla, feedback(tmp_path / "f"), "x\x1b[31m" * 60)
    assert not CONTROL.search(str(caught.value))
