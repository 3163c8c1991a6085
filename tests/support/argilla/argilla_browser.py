"""Argilla's own page in a real Chromium, as an annotator uses it: logging in, reading a record, grading by mouse and by keys.

Chromium is Debian's, never one that playwright downloads. Nothing leaves the machine: what the page asks of other hosts is refused and
written down.
"""

import re
from typing import Any

from argilla_fixture import Argilla

LAPTOP = {"width": 1440, "height": 900}
LABELS = ("A much better", "A better", "A slightly better", "tie", "B slightly better", "B better", "B much better")
KEYS = {str(key): (label, 4 - key) for key, label in enumerate(LABELS, 1)}
"""Label and grade by the key on the page."""

OUTSIDE_FONTS = "https://fonts.googleapis.com/"
"""What Argilla's page asks of others by itself; it shows another font where there is no answer."""

MARKERS = (
    "<b>bold</b> <made-up kind='x'>marked</made-up>",
    "&lt;made-up&gt; &#60;b&#62; &amp;lt; </textarea> <!-- remark --> <?mark ?> ]]>",
    "[press](javascript:0) <a href='JavaScript:0'>k</a> [d](data:,marker) [v](vbscript:0)",
    "![dot](http://127.0.0.1:9/dot.png) ![p][r] [r]: http://127.0.0.1:9/ref.png",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m \u202eturned",
    "{{ brace }} ${brace} $a$ and $b$",
)
"""Texts that must stay text, as harmless members of each kind that could become something else: bold type, a made-up tag, pictures and
links that lead nowhere, braces, control characters. Whatever turns one of them into an element, a link of its own or a request would do
so with text that is not harmless."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
"""What moves a terminal."""

MARKED = "made-up, .fields b, .fields img, .fields iframe"
JOINER = "\u2060"
FORM = "form.questions-form"
CHOSEN = f"{FORM} label.label-active"
SUBMIT = ".button--submit"


class Annotator:
    """A user who is logged in, in a browser window of their own, and what the page did that it must not do.

    dialogs: texts of alerts that opened; outside: addresses on other hosts that were asked for; errors: of the page's own scripts.
    """

    def __init__(self, browser: Any, argilla: Argilla, name: str) -> None:
        self.argilla, self.name = argilla, name
        self.dialogs: list[str] = []
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(viewport=LAPTOP)
        self.context.set_default_timeout(20_000)
        self.context.route("**/*", self._route)
        self.context.on("dialog", self._dialog)
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.page = self.context.new_page()
        self._log_in(argilla.owner_password if name == "owner" else argilla.annotator(name))

    def _log_in(self, password: str) -> None:
        self.page.goto(f"{self.argilla.api_url}/sign-in")
        self.page.fill("input[name=Username]", self.name)
        self.page.fill("input[name=Password]", password)
        self.page.click("button[type=submit]")
        self.page.wait_for_selector("text=Your datasets")

    def _route(self, route: Any) -> None:
        address = route.request.url
        if address.startswith((self.argilla.api_url, "blob:", "data:")):
            route.continue_()
            return
        self.outside.append(address)
        route.abort()

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def open(self, dataset: str, status: str = "pending") -> None:
        """The first record of a dataset (by id) with this status of one's own."""
        self.page.goto(f"{self.argilla.api_url}/dataset/{dataset}/annotation-mode?page=1&status={status}")
        self._focused()

    def reload(self) -> None:
        """The browser's reload, whatever is in the form."""
        self.page.reload()
        self._focused()

    def _focused(self) -> None:
        """Keys mean grades once the page has moved the focus into the form."""
        self.page.wait_for_selector(f"{FORM} .input-button")
        self.page.wait_for_function(f"document.activeElement?.closest('{FORM}') != null")

    def prompt(self) -> str:
        """The last message of the conversation that is shown."""
        return self.page.locator(".chat__bubble").last.inner_text().strip()

    def replies(self) -> list[str]:
        """The texts of Reply A, Reply B, ... as they can be read."""
        return [text.strip() for text in self.page.locator(".text_field_component .content-area").all_inner_texts()]

    def chosen(self) -> list[str]:
        """The labels that are marked as chosen."""
        return [text.split("\n")[-1].strip() for text in self.page.locator(CHOSEN).all_inner_texts()]

    def status(self) -> str:
        """Pending, draft, submitted or discarded, as the record is tagged."""
        return self.page.locator(".status-tag").first.inner_text().strip().lower()

    def press(self, key: str) -> None:
        """Choose a grade by its key."""
        self.page.keyboard.press(key)
        self._until_chosen(KEYS[key][0])

    def click(self, label: str) -> None:
        """Choose a grade by the mouse."""
        self.page.click(f'{FORM} label[title="{label}"]')
        self._until_chosen(label)

    def _until_chosen(self, label: str) -> None:
        self.page.wait_for_selector(f'{CHOSEN}[title="{label}"]')

    def rate(self, place: int, key: str) -> None:
        """Rate the reply at a place by a digit, when the focus has come to it."""
        question = f"document.querySelectorAll('{FORM} [aria-label^=\"Question: \"]')[{place}]"
        self.page.wait_for_function(f"{question}?.contains(document.activeElement)")
        self.page.keyboard.press(key)

    def reason(self, text: str) -> None:
        """Write into the box under "Why?"."""
        self.page.click(f"{FORM} .content__text")
        self.page.keyboard.type(text)

    def send(self, by: str, *, moves: bool = True) -> dict[str, Any]:
        """Press a key, or click the button where `by` begins with a point; what the server took. moves: to the next record."""
        before = self.prompt()
        with self.page.expect_response(lambda found: found.request.method in ("POST", "PUT") and "/responses" in found.url) as sent:
            if by.startswith("."):
                self.page.click(f"{FORM} {by}")
            else:
                self.page.keyboard.press(by)
        assert sent.value.ok, sent.value.text()
        if moves:
            self._moved(before)
        return sent.value.json()

    def next(self) -> bool:
        """Go on without answering; whether there was another record."""
        button = self.page.locator("button[aria-label='Next (→)']").first
        if not button.is_enabled():
            return False
        before = self.prompt()
        button.click()
        self._moved(before)
        return True

    def _moved(self, before: str) -> None:
        shown = "[...document.querySelectorAll('.chat__bubble')].at(-1)?.innerText.trim() ?? ''"
        self.page.wait_for_function(f"before => ({shown}) !== before", arg=before)
        if self.page.locator(".chat__bubble").count():
            self._focused()

    def close(self) -> None:
        """Close the window."""
        self.context.close()


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
