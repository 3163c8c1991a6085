"""Text that looks like markup or moves a terminal: inert on Argilla's page, the same when it comes back, never raw on a terminal."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from argilla_browser import CONTROL, MARKERS
from argilla_cases import Asked, feedback, texts_of
from cases import comparisons
from command import mmpo

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
         "completion": text + end, "model": model + text, "score": score, "rater": text}
        for i, text in enumerate(TEXTS)
        for end, model, score in (("", "", 1), ("!", "m", 5))
    ]  # fmt: skip
    return feedback(folder, rows, scale=(1, 5), kind="ai")


def shown(record: dict[str, Any]) -> list[str]:
    """Every text that the page puts on the screen."""
    fields = record["fields"]
    return [one["content"] for one in fields["prompt"]] + [text for own, text in fields.items() if own.startswith("reply_")]


@pytest.mark.parametrize("display", ["plain", "markdown"])
def test_the_data_of_the_page_is_inert_and_comes_back_to_the_letter(asked: Asked, display: str) -> None:
    data = marked(asked.folder / "f")
    summary = asked.push(data, suggest=True, display=display)
    assert (summary["sent"], summary["suggested"], summary["finished"]) == (len(TEXTS), len(TEXTS), True)
    asked.argilla.annotator("anna")
    with asked.argilla.as_user("anna") as anna:
        path = f"/api/v1/me/datasets/{asked.dataset['id']}/records/search"
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
    asked.answer_all("anna", grade="1", rationale=NOTE)
    asked.pull()
    assert texts_of(asked.out) == texts_of(data)
    assert {one["note"] for one in comparisons(asked.out)} == {NOTE}


def test_no_control_character_reaches_a_terminal(asked: Asked) -> None:
    """A user, a dataset, texts and reasons with escape sequences: neither push nor pull nor agree nor an error prints one."""
    asked.name += " \x1b]0;title\x07<b>"
    pushing = asked.mmpo("push", marked(asked.folder / "f"), "--suggest")
    assert pushing.returncode == 0, pushing.stderr
    asked.answer_all("eve\x1b[31m\u202e<b>", grade="2", rationale=MARKERS[4])
    asked.answer_all("anna", grade="1")
    pulling = asked.mmpo("pull", "--out", asked.out, "--real-names", "--json")
    assert pulling.returncode == 0, pulling.stderr
    assert len(json.loads(pulling.stdout)["raters"]) == 2
    outputs = [pushing.stderr, pulling.stderr, pulling.stdout, mmpo("agree", asked.out).stderr]
    for space in (asked.argilla.workspace, "w\x1b[2J"):
        wrong = ["--dataset", "no\x1b[2J", "--workspace", space, "--out", asked.folder / "none"]
        outputs.append(mmpo("argilla", "pull", *wrong, env=asked.environment).stderr)
    assert all(outputs)
    assert not [found for output in outputs for found in CONTROL.findall(output)]
    assert {one["rater"] for one in comparisons(asked.out)} == {"anna", "eve\\x1b[31m\\u202e<b>"}


def test_what_argilla_refuses_is_told_without_escape_sequences(asked: Asked) -> None:
    asked.name = "x\x1b[31m" * 60
    with pytest.raises(UserError) as caught:
        asked.push()
    assert not CONTROL.search(str(caught.value))
