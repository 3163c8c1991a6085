"""`python tests/support/check_site.py FOLDER`: the site opens from disk and fetches nothing, and every link inside it leads somewhere.

Exit status 1 where a page or a style sheet loads something from elsewhere, or a link has no file or no heading behind it.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}
NAMES_ONLY = {"canonical", "alternate", "prev", "next"}
"""Relations of <link> that name an address and fetch nothing."""


class Page(HTMLParser):
    """What a page loads, where its links lead, and the names inside it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in LOADS and LOADS[tag] in given and given.get("rel") not in NAMES_ONLY:
            self.loads.append(given[LOADS[tag]])


def faults(folder: Path) -> list[str]:
    """What is wrong with the pages of a folder, one sentence each."""
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    found = [] if pages else [f"{folder} holds no page"]
    for path, page in pages.items():
        found += [f"{path}: loads {one}" for one in page.loads if urlsplit(one).netloc]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{path}: {link} leads nowhere")
            elif parts.fragment and target.suffix == ".html":
                names = next(page.names for one, page in pages.items() if one.resolve() == target)
                if unquote(parts.fragment) not in names:
                    found.append(f"{path}: {link} names no heading")
    for style in folder.rglob("*.css"):
        found += [f"{style}: loads {one}" for one in re.findall(r"url\(['\"]?(https?://[^)]+)", style.read_text(encoding="utf-8"))]
    return found


if __name__ == "__main__":
    told = faults(Path(sys.argv[1]))
    print("\n".join(told) or f"{sys.argv[1]}: every link leads somewhere, nothing is loaded from elsewhere")
    sys.exit(bool(told))
