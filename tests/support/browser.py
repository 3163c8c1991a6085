"""A real Chromium, headless: Debian's, never one that playwright downloads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
--disable-sync"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; skips with the reason where Chromium or playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: the Debian package chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=ARGUMENTS.split())
        try:
            yield browser
        finally:
            browser.close()


class OpenedPage:
    """A page opened from disk, and what it did that it must not do: scripts' errors, requests but for itself, dialogs."""

    def __init__(self, browser: Any, path: Path, width: int = 1300, scheme: str = "light", **options: Any) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        context.set_default_timeout(10_000)
        self.page = context.new_page()
        self.wrong: list[str] = []
        own = path.resolve().as_uri()
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: request.url.split("#")[0] == own or self.wrong.append(request.url))
        self.page.goto(own)

    def text(self, place: str) -> str:
        """What a reader sees there."""
        return self.page.inner_text(place)

    def overflows(self) -> bool:
        """Whether the page as a whole is wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))
