"""A built site, as a browser without scripts would read it: what its pages lead to, and what they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

__all__ = ["Html", "asked_elsewhere", "broken_links", "read_site"]

ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
CSS = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^)"'\s]+)""")
LOADING = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}
NOT_LOADED = {"canonical", "prev", "next"}
"""`rel` of links that name a place and fetch nothing."""
COUNTED = ("li", "table", "pre")


@dataclass
class Html(HTMLParser):
    """One page."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    """Of `<a>`."""
    loaded: list[str] = field(default_factory=list)
    """What the page asks for by itself."""
    article: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    """How many of these the text has, without navigation."""

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)
        self._in_article = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what one element says."""
        said = {name: value or "" for name, value in attrs}
        self._in_article += tag == "article"
        if self._in_article and tag in self.article:
            self.article[tag] += 1
        self.ids |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        if said.get("rel") not in NOT_LOADED:
            self.loaded += [said[name] for element, name in LOADING if element == tag and name in said]
            self.loaded += [part.split()[0] for part in said.get("srcset", "").split(",") if part.strip()]

    def handle_endtag(self, tag: str) -> None:
        """Leave the text where it ends."""
        self._in_article -= tag == "article"


def read_site(folder: Path) -> dict[Path, Html]:
    """Every page below `folder`, by its path from there."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        page = Html()
        page.feed(path.read_text(encoding="utf-8"))
        pages[path.relative_to(folder)] = page
    return pages


def broken_links(folder: Path, pages: dict[Path, Html]) -> set[str]:
    """`page: link` for each link within the site that leads to no file, or to no place in it."""
    found = set()
    for path, page in pages.items():
        for link in page.links + page.loaded:
            if ELSEWHERE.match(link):
                continue
            target, anchor = urldefrag(unquote(link))
            if target.startswith("/"):
                there = folder / target.lstrip("/")
            else:
                there = folder / path.parent / target if target else folder / path
            there = there.resolve()
            is_there = there.is_file() or (there / "index.html").is_file()
            known = pages.get(there.relative_to(folder.resolve())) if there.is_file() else None
            if not is_there or (anchor and known is not None and anchor not in known.ids):
                found.add(f"{path}: {link}")
    return found


def asked_elsewhere(folder: Path, pages: dict[Path, Html]) -> set[str]:
    """`file: address` for all that a page, or a sheet of styles, fetches from another host."""
    found = {
        f"{path}: {one}" for path, page in pages.items() for one in page.loaded if ELSEWHERE.match(one)
        and not one.startswith("data:")
    }  # fmt: skip
    for path in folder.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found |= {f"{path.relative_to(folder)}: {one}" for one in CSS.findall(text)}
    return found
