"""Hostile text on Argilla's page: what it says, and how one sees in a browser that nothing of it runs, opens or is fetched."""

from argilla_browser import OUTSIDE_FONTS, Annotator

__all__ = ["HOSTILE", "inert", "look_as_owner", "read_hostile"]

HOSTILE = (
    "<script>window.pwned = 1; alert(1)</script>",
    '<img src=x onerror="window.pwned = 2; alert(2)">',
    '[press](javascript:window.pwned=3) <a href="javascript:alert(3)">here</a> [d](data:text/html,<script>alert(3)</script>)',
    '<svg onload="window.pwned = 4"></svg><iframe srcdoc="<script>parent.pwned = 4; alert(4)</script>"></iframe>',
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m \u202eturned",
    "![pixel](http://127.0.0.1:9/track.png) &lt;script&gt;alert(6)&lt;/script&gt; {{ constructor.constructor('alert(6)')() }}",
)
ACTIVE = "script, iframe, img, svg[onload], object, embed, form, input, base, meta"
HANDLERS = (
    "[...document.querySelectorAll('.fields *')].filter(one => [...one.attributes].some(a => a.name.startsWith('on'))).length"
)
JOINER = "\u2060"


def inert(window: Annotator) -> None:
    """Nothing ran, nothing opened, nothing was fetched."""
    assert window.page.evaluate("window.pwned") is None
    assert (window.dialogs, window.errors) == ([], [])
    assert [one for one in window.outside if not one.startswith(OUTSIDE_FONTS)] == []


def read_hostile(window: Annotator, display: str) -> int:
    """Read every record in view, press every link; how many there were."""
    count = 0
    while True:
        fields = window.page.locator(".fields")
        text = fields.inner_text().replace(JOINER, "")
        assert fields.locator(ACTIVE).count() == 0
        assert window.page.evaluate(HANDLERS) == 0
        at = int(window.prompt().split()[-1])
        # What it says can be read: as plain text all of it, with Markdown the tags (a link shows its words).
        wanted = [HOSTILE[at]] if display == "plain" else [part for part in (HOSTILE[at].split(">")[0],) if part[0] == "<"]
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
        assert opened.value.evaluate("window.pwned") is None
        opened.value.close()


def look_as_owner(owner: Annotator, dataset: str) -> None:
    """The list of datasets, the names of models among the filters, and many records at a time."""
    inert(owner)
    owner.open(dataset)
    owner.page.click(".filters__filter-button button")
    owner.page.locator(".filters__wrapper >> text=Metadata").first.click()
    owner.page.locator("text=model_a").first.click()
    owner.page.wait_for_selector("text=<script>window.pwned = 1; alert(1)</script> >> visible=true")
    inert(owner)
    owner.open(dataset)
    owner.page.click("[aria-label='Switch to Bulk Mode']")
    owner.page.locator(".fields").nth(len(HOSTILE) - 1).wait_for()
    inert(owner)
