"""A dataset's page in a real Chromium, opened from disk: text of others stays text, filters, differences, keys, colours, paper,
small screens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from argilla_browser import MARKERS
from browser import OpenedPage, chromium
from folders import pairs_folder
from grade_cases import feedback, rated, said
from pair_cases import pair, pairs_by_hand

from mmpo.annotate.agreement import rater_overview
from mmpo.cli.main import run
from mmpo.pipeline.report import write_report, write_versions

HIDDEN = "\u202e turned \x1b[31m red \u200b\u2066"
CONTRAST = """() => {
  const light = (text) => {
    const part = text.match(/[\\d.]+/g).map(Number), line = part.slice(0, 3).map((x) => x / 255)
      .map((x) => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * line[0] + .7152 * line[1] + .0722 * line[2];
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour) && !/rgba\\(.*0\\.\\d+\\)/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("main *")].filter((node) => node.offsetParent && [...node.childNodes].some(
    (child) => child.nodeType === 3 && child.textContent.trim())).map((node) => {
      const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
      return [(a + .05) / (b + .05), node.tagName + "." + node.className + ": " + node.textContent.slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 40 pairs by two raters, written by the command: the better reply differs by a word; of one pair ann thinks otherwise."""
    rows = []
    for i in range(40):
        for rater, turned in (("ann", i == 7), ("bob", False)):
            for j, word in enumerate(("cat", "dog")):
                score = 1 + (1 - j if turned else j) * (1 + (i % 4) * (rater == "bob"))
                rows.append(
                    {"prompt": f"q{i}", "completion": f"the {word} sat {i}", "score": score, "rater": rater, "model": f"m{j}"}
                )
    folder = pairs_folder(tmp_path_factory.mktemp("page") / "pairs", rows, scale=(1, 5))
    assert run(["report", str(folder)]) == 0
    return folder.with_name("pairs.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose every text of others could be taken for something else."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = [*MARKERS, HIDDEN, "</script><made-up>", "<!--", "\\u003c/script>", "'\"`"]
    rows = [
        pair(f"{i} {text}", f"yes {text}", f"no {text} no", i, models=(text, f"{text}2"), source=text, kind="human")
        for i, text in enumerate(texts)
    ]
    checks = [{"name": text, "status": "warn", "count": 1, "message": text} for text in texts]
    return write_report(pairs_by_hand(folder / "pairs", *rows), folder / "page.html", checks, title=MARKERS[0])


def test_text_of_others_stays_text(hostile: Path, browser: Any) -> None:
    opened = OpenedPage(browser, hostile)
    for _ in range(2):
        assert opened.page.locator("made-up, main img, main iframe, .sample b:not(.pass):not(.soft), .sample a").count() == 0
        opened.page.click("#after")
    opened.page.fill("#find", "<made-up kind='x'>")
    shown = opened.text("#examples")
    assert MARKERS[0] in shown and "Pairs 1 to 1 of 1" in opened.text("#found")
    opened.page.fill("#find", "turned")
    assert "\\u202e turned \\x1b[31m red \\u200b\\u2066" in opened.text("#examples")
    opened.page.select_option("#source", "=" + MARKERS[0])
    assert "No pair on this page fits" in opened.text("#found")
    opened.page.fill("#find", "")
    assert "of 1 that fit" in opened.text("#found") and opened.wrong == []


def test_two_versions_show_it_as_text_too(tmp_path: Path, browser: Any) -> None:
    texts = [*MARKERS, HIDDEN, "</script><made-up>"]
    for name, turned in (("old", 1), ("new", -1)):
        sides = [(f"yes {text}", f"no {text}")[::turned] for text in texts]
        pairs_by_hand(tmp_path / name, *(pair(text, *both, 2.0, source=text) for text, both in zip(texts, sides, strict=True)))
    opened = OpenedPage(
        browser, write_versions(tmp_path / "old", tmp_path / "new", tmp_path / "page.html", title=MARKERS[0]), 400, "dark"
    )
    opened.page.fill("#find", "made-up kind")
    assert MARKERS[0] in opened.text("#examples") and "Margin 2.000 in A and -2.000 in B" in opened.text("#examples")
    assert opened.page.locator("made-up").count() == 0 and opened.wrong == [] and not opened.overflows()
    assert opened.page.evaluate(CONTRAST) == []


def test_filters_and_what_raters_said(built: Path, browser: Any) -> None:
    opened = OpenedPage(browser, built)

    def found() -> str:
        return opened.text("#found")

    assert "of 40 that fit" in found() and opened.page.locator(".sample").count() == 5
    opened.page.fill("#low", "2.4")
    assert "of 9 that fit" in found()  # (1 + 4)/2, where i % 4 is 3, but for the one where ann thinks otherwise
    opened.page.click("text=Clear")
    opened.page.select_option("#rater", "=ann")
    opened.page.select_option("#verdict", "against")
    assert "of 1 that fit" in found() and "ann (overall) prefers the rejected one by 1" in opened.text("#examples")
    opened.page.select_option("#verdict", "for")
    assert "of 39 that fit" in found()
    opened.page.click("text=Clear")
    opened.page.select_option("#order", "rising")
    first = opened.text(".sample h3 >> nth=0")
    opened.page.select_option("#order", "falling")
    assert first.startswith("Margin 1") and opened.text(".sample h3 >> nth=0").startswith("Margin 2.5")
    opened.page.select_option("#model", "=m1")
    assert "of 40 that fit" in found() and opened.wrong == []


def test_differing_words_are_marked(built: Path, browser: Any) -> None:
    opened = OpenedPage(browser, built)
    two = opened.page.locator(".sample >> nth=0").locator(".two > div")
    assert [two.nth(side).locator("mark").all_inner_texts() for side in (0, 1)] == [["dog"], ["cat"]]
    opened.page.uncheck("#mark")
    assert opened.page.locator("mark").count() == 0


def run_of(first: int, count: int) -> str:
    """So many different Chinese characters: words, and nothing between them."""
    return "".join(chr(first + i) for i in range(count))


LONG = run_of(0x4E00, 4000)
FEW, FAR = "The replies share too few words to mark differences.", "The replies are too long and too different to mark differences."
STRETCH = "A long stretch without common runs is marked whole: its words were not compared."
DIFFERENCES: dict[str, tuple[str, str, list[str], list[str], str]] = {
    "Chinese": ("今天天气很好。", "今天天气不好。", ["很"], ["不"], ""),
    "Japanese": ("猫がすわった", "犬がすわった", ["猫"], ["犬"], ""),
    "Thai, marks with their letters": ("วันนี้ฝนตก", "วันนั้นฝนตก", ["นี้"], ["นั้น"], ""),
    "Hindi, marks within words": ("यह किताब है", "यह कहानी है", ["किताब"], ["कहानी"], ""),
    "mixed": ("用 numpy 写", "用 torch 写", ["numpy"], ["torch"], ""),
    "long, all but both ends": (f"one {LONG} two", f"three {LONG} four", ["one", "two"], ["three", "four"], ""),
    "long, in three places": (
        f"a{LONG[:1500]}b{LONG[1500:]}c", f"d{LONG[:1500]}e{LONG[1500:]}f", ["a", "b", "c"], ["d", "e", "f"], ""
    ),
    "nothing alike": ("one two three", "four five six", [], [], FEW),
    "long and nothing alike": (LONG, run_of(0x6E00, 4000), [], [], FAR),
    "a long stretch apart": (
        f"{LONG[:2900]}{run_of(0x6000, 2900)}", f"{LONG[:2900]}{run_of(0x7000, 2900)}",
        [run_of(0x6000, 2900)], [run_of(0x7000, 2900)], STRETCH,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_by_hand(name: str, browser: Any, tmp_path: Path) -> None:
    one, other, *expected, note = DIFFERENCES[name]
    folder = pairs_by_hand(tmp_path / "pairs", pair("q", one, other, 1.0))
    opened = OpenedPage(browser, write_report(folder, tmp_path / "page.html", []))
    two = opened.page.locator(".two > div")
    assert [two.nth(side).locator("mark").all_inner_texts() for side in (0, 1)] == expected
    said = opened.text("#examples")
    assert [words for words in (FEW, FAR, STRETCH) if words in said] == ([note] if note else []) and opened.wrong == []


def test_of_32_raters_all_are_found_and_twenty_are_folded(browser: Any, tmp_path: Path) -> None:
    """The thirtieth alone calls it a tie."""
    rows = [
        {"prompt": "q", "completion": word, "score": 1 + (word == "dog") * (i != 30), "rater": f"r{i:02}"}
        for i in range(32)
        for word in ("cat", "dog")
    ]
    assert run(["report", str(pairs_folder(tmp_path / "pairs", rows, scale=(1, 5)))]) == 0
    opened = OpenedPage(browser, tmp_path / "pairs.html")
    assert opened.page.locator(".said li").count() == 32 and opened.page.locator(".said li:visible").count() == 12
    opened.page.click("text=20 more")
    assert "r30 (overall) calls it a tie" in opened.text("#examples")
    opened.page.select_option("#rater", "=r30")
    assert "of 1 that fit" in opened.text("#found") and opened.text(".said li >> nth=0").startswith("r30 ")
    opened.page.select_option("#verdict", "for")
    assert "No pair" in opened.text("#found") and opened.wrong == []


def test_by_keys_alone(built: Path, browser: Any) -> None:
    opened = OpenedPage(browser, built)
    opened.page.focus("#low")
    opened.page.keyboard.type("1.9")
    assert "of 19 that fit" in opened.text("#found")
    for _ in range(40):  # past the filters and the texts, which scroll by keys
        opened.page.keyboard.press("Tab")
        if opened.page.evaluate("document.activeElement.id") == "after":
            break
    opened.page.keyboard.press("Enter")
    assert opened.text("#found").startswith("Pairs 6 to 10")
    outline = opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid" and opened.page.locator(".scroll[tabindex='0'][aria-label]").count() > 3


def test_raters_with_all_that_can_be_said_of_them_fit_the_page(browser: Any, tmp_path: Path) -> None:
    """Ratings, comparisons in both orders, repeats of both, on a scale of 100 points: 14 columns, intervals in most."""
    names, rows = ("claude-3-5-sonnet-20241022", "meta-llama/Llama-3.1-70B-Instruct", "annotator-12"), []
    for i in range(120):
        grades = []
        for j, name in enumerate(names):
            about: dict[str, Any] = {"kind": "human" if j == 2 else "reward_model"}
            gap = 100 * ((i * (j + 3) + i // 7) % 3 - 1) + 3 * (i % 11)
            grades += [
                said(name, a, b, c * gap + 40 + i % 13, limit=200, **about) for a, b, c in ((0, 1, 1), (1, 0, -1), (1, 0, -1))
            ]
            scores = ((i * 7 + j) % 101, (i * i + 5 * j) % 101, (i * 5 + j * i) % 101)
            grades += [
                rated(name, place, score, low=0.0, high=100.0, **about) for place, score in zip((0, 1, 0), scores, strict=True)
            ]
        rows.append(grades)
    page = write_report(
        pairs_by_hand(tmp_path / "pairs", pair("q", "yes", "no", 1.0)),
        tmp_path / "page.html",
        [],
        raters=rater_overview(feedback(*rows)),
    )
    opened = OpenedPage(browser, page)
    table = opened.page.locator("[aria-label=raters]")
    assert table.locator("th").count() == 14 and table.evaluate("(box) => box.scrollWidth <= box.clientWidth")
    opened.page.set_viewport_size({"width": 400, "height": 900})  # each row is a block then, with the columns' names
    assert table.evaluate("(box) => box.scrollWidth <= box.clientWidth") and not table.locator("th").first.is_visible()
    named = table.locator("td").nth(1).evaluate("(cell) => getComputedStyle(cell, '::before').content")
    assert named == '"kind"'


@pytest.mark.slow
@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_and_widths(width: int, scheme: str, built: Path, hostile: Path, browser: Any) -> None:
    for page in (built, hostile):
        opened = OpenedPage(browser, page, width, scheme)
        assert not opened.overflows()
        paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 25, 31)")
        assert opened.page.evaluate(CONTRAST) == [] and opened.wrong == []


@pytest.mark.slow
def test_on_paper_and_without_scripts(built: Path, browser: Any) -> None:
    opened = OpenedPage(browser, built, scheme="dark")
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.is_visible("#controls") and opened.page.is_visible(".sample")
    assert len(opened.page.pdf()) > 20_000
    still = OpenedPage(browser, built, java_script_enabled=False)
    assert "Largest margin" in still.text("main") and "the dog sat" in still.text("main")
