"""Texts that must stay text, as harmless members of each kind that could become something else, and how one sees in a browser that they do.

Markers are bold type, a made-up tag, pictures and links that lead nowhere, braces, control characters: whatever turns one of them into an
element, a link of its own or a request would do so with text that is not harmless.
"""

import re

from argilla_browser import OUTSIDE_FONTS, Annotator

__all__ = ["CONTROL", "MARKERS", "inert", "look_as_owner", "marked", "read_markers"]

MARKERS = (
    "<b>bold</b> <made-up kind='x'>marked</made-up>",
    "&lt;made-up&gt; &#60;b&#62; &amp;lt; </textarea> <!-- remark --> <?mark ?> ]]>",
    "[press](javascript:0) <a href='JavaScript:0'>k</a> [d](data:,marker) [v](vbscript:0)",
    "![dot](http://127.0.0.1:9/dot.png) ![p][r] [r]: http://127.0.0.1:9/ref.png",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m \u202eturned",
    "{{ brace }} ${brace} $a$ and $b$",
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
"""What moves a terminal."""

MARKED = "made-up, .fields b, .fields img, .fields iframe"
JOINER = "\u2060"


def marked(window: Annotator) -> int:
    """How many elements the page and its frames made of markers."""
    return sum(frame.locator(MARKED).count() for frame in window.page.frames)


def inert(window: Annotator) -> None:
    """No marker became an element, nothing opened, nothing was fetched."""
    assert marked(window) == 0
    assert (window.dialogs, window.errors) == ([], [])
    assert [one for one in window.outside if not one.startswith(OUTSIDE_FONTS)] == []


def read_markers(window: Annotator, display: str) -> int:
    """Read every record in view, press every link; how many there were."""
    count = 0
    while True:
        text = window.page.locator(".fields").inner_text().replace(JOINER, "")
        at = int(window.prompt().split()[-1])
        # What it says can be read: as plain text all of it, with Markdown the tags (a link shows its words).
        wanted = [MARKERS[at]] if display == "plain" else [part for part in (MARKERS[at].split(">")[0],) if part[0] == "<"]
        assert all(part in text for part in wanted)
        press_links(window)
        inert(window)
        count += 1
        if not window.next():
            return count


def press_links(window: Annotator) -> None:
    for link in window.page.locator(".fields a").all():
        address = link.get_attribute("href") or ""
        assert not address.lower().replace(" ", "").startswith(("javascript:", "data:", "vbscript:"))
        if address.startswith("http"):
            continue
        with window.context.expect_page() as opened:
            link.click()
        opened.value.wait_for_load_state()
        opened.value.close()


def look_as_owner(owner: Annotator, dataset: str) -> None:
    """The list of datasets, the names of models among the filters, and many records at a time."""
    inert(owner)
    owner.open(dataset)
    owner.page.click(".filters__filter-button button")
    owner.page.locator(".filters__wrapper >> text=Metadata").first.click()
    owner.page.locator("text=model_a").first.click()
    owner.page.wait_for_selector("text=<b>bold</b> >> visible=true")
    inert(owner)
    owner.open(dataset)
    owner.page.click("[aria-label='Switch to Bulk Mode']")
    owner.page.locator(".fields").nth(len(MARKERS) - 1).wait_for()
    inert(owner)
