"""Argilla's own page in a real browser: what people click there is what `mmpo argilla pull` brings back, and text stays text."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest
from argilla_browser import KEYS, MARKERS, SUBMIT, Annotator, inert, look_as_owner, marked, read_markers
from argilla_cases import Asked, pairs, rejected, texts_of
from argilla_fixture import Argilla
from browser import chromium
from cases import comparisons, ratings
from command import wait_for

from mmpo.pipeline import BuildOptions, build, load_pairs

DRAFT, DISCARD = ".button--draft", ".button--discard"


@pytest.fixture(scope="module")
def browser(argilla_environment: Path) -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def annotator(browser: Any, argilla: Argilla) -> Iterator[Callable[[str], Annotator]]:
    """Logs users in; their windows are closed after the test."""
    windows: list[Annotator] = []

    def log_in(user: str) -> Annotator:
        windows.append(Annotator(browser, argilla, user))
        return windows[-1]

    yield log_in
    for window in windows:
        window.close()


class Clicked(NamedTuple):
    """What a person did to the record in view: the grade toward the reply that they saw as A."""

    rater: str
    prompt: str
    a: str
    b: str
    gap: float
    note: str = ""


def seen(window: Annotator, key: str, note: str = "") -> Clicked:
    a, b = window.replies()
    return Clicked(window.name, window.prompt(), a, b, KEYS[key][1], note)


def by_key(window: Annotator, key: str) -> Clicked:
    done = seen(window, key)
    window.press(key)
    window.send("Enter")
    return done


def by_mouse(window: Annotator, key: str, note: str = "") -> Clicked:
    done = seen(window, key, note)
    window.click(KEYS[key][0])
    if note:
        window.reason(note)
    window.send(SUBMIT)
    return done


def anna_grades(anna: Annotator, dataset: str) -> list[Clicked]:
    """Keys, mouse, a draft by Ctrl-S, a discard by backspace, a reload in mid-answer."""
    anna.open(dataset)
    done = [by_key(anna, "1"), by_mouse(anna, "5")]
    anna.press("4")
    anna.send("Control+s", moves=False)
    assert anna.status() == "draft"
    assert anna.next()
    anna.send("Backspace")
    done.append(by_key(anna, "7"))
    anna.press("6")
    unsent = anna.prompt()
    anna.page.reload()
    anna.open(dataset)
    # Whatever was pressed before the reload is gone, and the record is open again.
    assert (anna.prompt(), anna.chosen(), anna.status()) == (unsent, [], "pending")
    done += [by_mouse(anna, "2", "because 7 is not 3"), by_key(anna, "4")]
    return [*done, by_key(anna, "3")]


def ben_grades(ben: Annotator, dataset: str) -> list[Clicked]:
    """A reload on the first record, buttons for draft and discard, and a grade that he changes afterwards."""
    ben.open(dataset)
    first = ben.prompt()
    ben.click("A much better")
    ben.reload()
    assert (ben.prompt(), ben.chosen()) == (first, [])
    by_mouse(ben, "2")
    ben.send(DISCARD)
    done = [by_key(ben, "5")]
    ben.click("A better")
    ben.send(DRAFT, moves=False)
    assert ben.next()
    done += [by_mouse(ben, "6"), by_key(ben, "6"), by_key(ben, "4"), by_mouse(ben, "1")]
    ben.open(dataset, "submitted")
    while ben.prompt() != first:
        assert ben.next()
    assert ben.chosen() == ["A better"]
    changed = seen(ben, "7")
    ben.press("7")
    ben.send("Enter", moves=False)
    return [*done, changed]


@pytest.mark.slow
def test_what_two_people_click_is_what_comes_back(asked: Asked, annotator: Callable[[str], Annotator]) -> None:
    asked.push(pairs(asked.folder / "pairs", 8), raters=2)
    # Both windows are open at the same time.
    anna, ben = annotator("anna"), annotator("ben")
    clicks = anna_grades(anna, asked.dataset["id"]) + ben_grades(ben, asked.dataset["id"])
    assert len(clicks) == 12
    assert not (anna.dialogs or ben.dialogs or anna.errors or ben.errors)

    pull = partial(asked.mmpo, "pull", "--out", asked.out, "--real-names", "--json")
    done = pull()
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    names = ("rater", "prompt", "first_text", "second_text", "gap")
    graded = [Clicked(*(one[name] for name in names), one["note"] or "") for one in comparisons(asked.out)]
    assert sorted(graded) == sorted(clicks)
    assert summary["responses"] == {"used": 12, "draft": 2, "discarded": 2}
    assert rejected(asked.out) == {"draft": 2, "discarded": 2}
    assert "2 drafts, 2 discarded" in done.stderr

    assert len({one.a[: len("Answer 0")] for one in clicks}) == 2, "both orders were drawn"
    build(asked.out, asked.folder / "graded", options=BuildOptions(format="feedback", evidence="comparisons"))
    built = load_pairs(asked.folder / "graded").to_pylist()
    assert sorted(pair["prompt"][-1]["content"] for pair in built) == sorted({one.prompt for one in clicks})
    for pair in built:
        prompt, chosen = (pair[name][-1]["content"] for name in ("prompt", "chosen"))
        toward = [one.gap if one.a == chosen else -one.gap for one in clicks if one.prompt == prompt]
        assert pair["quality_margin"] == pytest.approx(fmean(toward))
    again = json.loads(pull().stdout)
    assert (again["new"], again["changed"], again["unchanged"]) == (0, 0, 12)


@pytest.mark.slow
def test_a_suggestion_is_marked_and_stands_until_somebody_chooses(asked: Asked, annotator: Callable[[str], Annotator]) -> None:
    """Argilla chooses a suggestion beforehand: Enter alone makes it an answer. docs/human.md warns of it."""
    asked.push(pairs(asked.folder / "pairs", 3), suggest=True)
    suggested = {one["fields"]["prompt"][-1]["content"]: one["suggestions"][0]["value"] for one in asked.records()}
    anna = annotator("anna")
    anna.open(asked.dataset["id"])
    first = anna.prompt()
    marked = anna.page.locator("label.label-text:has(.label-text__suggestion)")
    assert marked.count() == 1
    label = next(text for text, grade in KEYS.values() if str(grade) == suggested[first])
    assert (marked.get_attribute("title"), anna.chosen()) == (label, [label])
    assert anna.send("Enter")["values"]["grade"]["value"] == suggested[first]
    other = "1" if suggested[anna.prompt()] != "3" else "7"
    anna.press(other)
    assert anna.send("Enter")["values"]["grade"]["value"] == str(KEYS[other][1])


@pytest.mark.slow
def test_four_replies_are_rated_by_keys(asked: Asked, annotator: Callable[[str], Annotator]) -> None:
    """A digit rates the reply whose turn it is, and the next reply's turn comes by itself."""
    rows = [{"prompt": "Which is best?", "completions": [f"Answer number {i}." for i in range(4)]}]
    asked.push(rows, questions="ratings")
    anna = annotator("anna")
    anna.open(asked.dataset["id"])
    shown = anna.replies()
    for place, key in enumerate("4152"):
        anna.rate(place, key)
    anna.send("Enter")
    asked.pull()
    assert {one["text"]: one["score"] for one in ratings(asked.out)} == dict(zip(shown, (4.0, 1.0, 5.0, 2.0)))


@pytest.mark.slow
def test_everything_fits_a_laptop(asked: Asked, annotator: Callable[[str], Annotator]) -> None:
    """Conversation, both replies, the seven grades and Submit are in view together, and the guidelines open beside the grades."""
    asked.push(pairs(asked.folder / "pairs", 2))
    anna = annotator("anna")
    anna.open(asked.dataset["id"])
    page = anna.page
    for place in (".chat__bubble", ".text_field_component >> nth=0", ".text_field_component >> nth=1", SUBMIT):
        box = page.locator(place).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 900, place
    grades = [page.locator(f'label[title="{label}"]').bounding_box() for label, _ in KEYS.values()]
    assert all(box["x"] + box["width"] <= 1440 and box["height"] > 20 for box in grades)
    shown = [text.split("\n")[0].strip() for text in page.locator("form.questions-form label.label-text").all_inner_texts()]
    assert shown == list(KEYS)
    page.locator("button.panel__header:visible", has_text="Guidelines").first.click()
    page.wait_for_selector("text=How much better is one reply than the other? >> visible=true")
    assert page.locator(f'label[title="{KEYS["7"][0]}"]').is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("display", ["plain", "markdown"])
def test_text_that_looks_like_markup_is_read_as_text(asked: Asked, annotator: Callable[[str], Annotator], display: str) -> None:
    """In prompt, replies, models, the dataset's name and the reasons that people write; and it comes back to the letter."""
    asked.name += f" {MARKERS[0]}"
    twice = [(f"{text} {i}", [text, f"{text} too"], [text, f"m {text}"]) for i, text in enumerate(MARKERS)]
    asked.push([dict(zip(("prompt", "completions", "models"), one)) for one in twice], display=display, raters=2)
    own = asked.dataset["id"]
    anna = annotator("anna")
    inert(anna)
    anna.open(own)
    assert read_markers(anna, display) == len(MARKERS)
    anna.open(own)
    for text in MARKERS:
        anna.press("2")
        anna.reason(text)
        anna.send(SUBMIT)
    anna.open(own, "submitted")
    read_markers(anna, display)
    look_as_owner(annotator("owner"), own)
    asked.pull(real_names=True)
    assert texts_of(asked.out) == texts_of(asked.folder / "f")
    assert sorted(one["note"] for one in comparisons(asked.out)) == sorted(MARKERS)


@pytest.mark.slow
def test_the_watch_sees_what_raw_text_would_do(asked: Asked, annotator: Callable[[str], Annotator]) -> None:
    """The same page makes elements of text that is put there as it is: that there were none above is our doing, and would be noticed."""
    asked.push(pairs(asked.folder / "pairs", 1), display="plain")
    asked.edit(asked.records()[0], reply_a=MARKERS[0])
    anna = annotator("anna")
    anna.open(asked.dataset["id"])
    assert wait_for(lambda: anna.page.wait_for_timeout(100) or marked(anna), seconds=20)
