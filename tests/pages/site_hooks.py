"""MkDocs' hooks for the documentation: `make docs`.

Pages are written for two readers. In a checkout they link to files of the repository by relative paths
(`../proto/…`); the site has a page for each of these, with the file in it. And Markdown as repositories
show it lets a list follow its paragraph without a blank line, and nests one by two spaces; Python-Markdown
does not.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
SHOWN = "repository/"
"""Where the site has pages of files that are not documentation."""
LANGUAGES = {".py": "python", ".proto": "protobuf", ".yaml": "yaml", ".json": "json", ".ts": "typescript"}
"""Of what is shown; anything else is plain text."""
MAX_SHOWN_BYTES = 100_000

_FENCE = re.compile(r"^ *(`{3,}|~{3,})")
_LINK = re.compile(r"(\]\()([^)\s]+)")
_ITEM = re.compile(r"^( *)(?:[-*]|\d+\.) ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file of the repository to which a page leads, or the navigation."""
    waiting = [DOCS + file.src_uri for file in files.documentation_pages()]
    waiting += [_original(path) for path in _leaves(config.nav or [])]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        found = ROOT / path
        if not path.startswith(DOCS):
            files.append(File.generated(config, _place(found), content=_content(found)))
        if found.suffix == ".md":
            for target in _outside(path, found.read_text(encoding="utf-8")):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the site has what they name, and set lists as Python-Markdown wants them."""
    here = page.file.src_uri
    origin = here.removeprefix(SHOWN) if here.startswith(SHOWN) else DOCS + here
    return adapted(markdown, origin, here)


def adapted(markdown: str, origin: str, here: str) -> str:
    """A page of the repository (`origin`, its path there) as the one of the site (`here`)."""
    lines, before, is_code = [], "", False
    for line in markdown.splitlines():
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code:
            line = _LINK.sub(lambda link: link[1] + _led(link[2], origin, here), line)
            if (item := _ITEM.match(line)) is not None:
                if not item[1] and before.strip() and not before.startswith(" ") and not _ITEM.match(before):
                    lines.append("")
                line = item[1] + line
        lines.append(line)
        before = line
    return "\n".join(lines) + "\n"


def _led(target: str, origin: str, here: str) -> str:
    path, mark, anchor = target.partition("#")
    found = _in_repository(path, origin)
    if found is None:
        return target
    return posixpath.relpath(_place(ROOT / found), posixpath.dirname(here)) + mark + anchor


def _in_repository(path: str, origin: str) -> str | None:
    """What a relative link of a page means, from the root; None for addresses, and what is not there."""
    if not path or ":" in path or path.startswith("/"):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    return found if (ROOT / found).exists() else None


def _outside(origin: str, markdown: str) -> Iterator[str]:
    """Files to which a page leads and which are not among the documentation."""
    for _, target in _LINK.findall(markdown):
        found = _in_repository(target.partition("#")[0], origin)
        if found is not None and not found.startswith(DOCS):
            yield found


def _original(place: str) -> str:
    """The file of the repository that a page below SHOWN has."""
    path = place.removeprefix(SHOWN)
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def _place(path: Path) -> str:
    """Where the site has it."""
    name = path.relative_to(ROOT).as_posix()
    if name.startswith(DOCS):
        return name.removeprefix(DOCS)
    return SHOWN + (name if path.suffix == ".md" else f"{name}.md")


def _content(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        return title + "".join(f"- `{one.name}`\n" for one in sorted(path.iterdir()))
    if path.stat().st_size > MAX_SHOWN_BYTES:
        return f"{title}{path.stat().st_size:,} bytes: to be read in a checkout.\n"
    text = path.read_text(encoding="utf-8").rstrip()
    return f"{title}```{LANGUAGES.get(path.suffix, 'text')}\n{text}\n```\n"


def _leaves(nav: object) -> Iterator[str]:
    """Pages that the navigation names and no page of ours is."""
    if isinstance(nav, str):
        yield from [nav] if nav.startswith(SHOWN) else []
    elif isinstance(nav, dict):
        for one in nav.values():
            yield from _leaves(one)
    elif isinstance(nav, list):
        for one in nav:
            yield from _leaves(one)
