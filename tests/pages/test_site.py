"""The site is built as `make docs` builds it, leads nowhere that is not there, and asks no other host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from pages.site_hooks import adapted
from playwright.sync_api import expect, sync_playwright
from support.require import skip_or_fail
from support.site import COUNTED, Html, asked_elsewhere, broken_links, read_site

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

REFERENCE = re.compile(r"(?<![\w/.-])docs/((?:[\w-]+/)*[\w-]+)\.md(?:#([\w-]+))?")
"""Of a page, as code and manifests name it."""
TEXT = {".py", ".proto", ".yaml", ".yml", ".toml", ".md", ".ts", ".js", ".mjs", ""}


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stdout + built.stderr == ""
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return read_site(site)


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Html]) -> None:
    assert broken_links(site, pages) == set()


def test_every_page_is_in_the_navigation_once(root: Path) -> None:
    text = (root / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"([\w./-]+\.md)$", text.split("\nnav:\n")[1], re.MULTILINE)
    assert len(named) == len(set(named))
    ours = {path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")}
    assert {name for name in named if not name.startswith("repository/")} == ours


def test_every_page_that_code_names_is_there(root: Path, pages: dict[Path, Html]) -> None:
    """README, alerts' runbooks, hints of the command line."""
    found = 0
    for name in tracked(root):
        path = root / name
        if path.suffix in TEXT and path.is_file():
            for page, anchor in REFERENCE.findall(path.read_text(encoding="utf-8")):
                found += 1
                there = pages.get(Path(f"{page}.html"))
                assert there is not None, f"{name}: docs/{page}.md"
                assert not anchor or anchor in there.ids, f"{name}: docs/{page}.md#{anchor}"
    assert found > 50


def test_the_readme_leads_to_what_is_there(root: Path, pages: dict[Path, Html]) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", text)
    assert len(targets) > 30
    for target, anchor in targets:
        assert (root / target).exists(), target
        if anchor:
            page = Path(target).relative_to("docs").with_suffix(".html")
            assert anchor in pages[page].ids, f"{target}#{anchor}"


def test_a_page_has_the_lists_tables_and_code_that_the_repository_shows(
    root: Path, pages: dict[Path, Html]
) -> None:
    reader = MarkdownIt("commonmark").enable("table")
    for path in sorted((root / "docs").rglob("*.md")):
        place = path.relative_to(root / "docs")
        shown = reader.render(path.read_text(encoding="utf-8"))
        expected = {tag: len(re.findall(rf"<{tag}[ >]", shown)) for tag in COUNTED}
        assert pages[place.with_suffix(".html")].article == expected, place


def test_lists_and_links_are_written_for_the_site() -> None:
    text = "It has\n- one\n  - more\n\n```\n- [as it is](../Makefile)\n```\n[a](../Makefile) [b](grpc.md#x)\n"
    assert adapted(text, "docs/engine.md", "engine.md") == (
        "It has\n\n- one\n    - more\n\n```\n- [as it is](../Makefile)\n```\n"
        "[a](repository/Makefile.md) [b](grpc.md#x)\n"
    )
    assert adapted("[a](../docs/cli.md) [b](none.md)", "deploy/README.md", "repository/deploy/README.md") == (
        "[a](../../cli.md) [b](none.md)\n"
    )


def test_nothing_comes_from_another_host(site: Path, pages: dict[Path, Html]) -> None:
    assert asked_elsewhere(site, pages) == set()


@pytest.mark.parametrize(
    ("text", "broken", "asked"),
    [
        ('<p id="a"><a href="#a">', 0, 0),
        ('<a href="#b">', 1, 0),
        ('<a href="other.html#c">', 0, 0),
        ('<a href="other.html#a">', 1, 0),
        ('<a href="none.html">', 1, 0),
        ('<img src="none.png">', 1, 0),
        ('<a href="https://example.com/">', 0, 0),
        ('<link rel="canonical" href="https://example.com/">', 0, 0),
        ('<img srcset="https://example.com/a.png 2x">', 0, 1),
        ('<script src="//example.com/a.js">', 0, 1),
    ],
)
def test_what_is_broken_or_comes_from_elsewhere_is_seen(
    tmp_path: Path, text: str, broken: int, asked: int
) -> None:
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="c">', encoding="utf-8")
    pages = read_site(tmp_path)
    assert (len(broken_links(tmp_path, pages)), len(asked_elsewhere(tmp_path, pages))) == (broken, asked)


def test_a_sheet_that_fetches_a_font_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@font-face{src:url(https://example.com/a.woff2)}", encoding="utf-8")
    assert asked_elsewhere(tmp_path, {}) == {"a.css: https://example.com/a.woff2"}


def tracked(root: Path) -> list[str]:
    """Paths of all files that are, or would be, in the repository."""
    if shutil.which("git") is None or not (root / ".git").exists():
        skip_or_fail("not a git checkout")
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    return [name for name in listing.stdout.split("\0") if name]


# -- in a browser


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_browser_finds_a_page_and_asks_no_other_host(address: str) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        skip_or_fail("chromium is missing (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/index.html")
        page.locator("input.md-search__input").fill("feature bank")
        first = page.locator("a.md-search-result__link").first
        expect(first).to_be_visible(timeout=20_000)
        first.click()
        expect(page.locator("article h1")).to_be_visible()
        browser.close()
    assert faults == []
    assert len(asked) > 5
    assert {urlsplit(one).netloc for one in asked if one.startswith("http")} == {urlsplit(address).netloc}
