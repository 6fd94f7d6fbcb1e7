"""The code on a page of documentation, to be run as it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

__all__ = ["Block", "Fence", "blocks", "fences"]

_NEEDS = re.compile(r"<!-- needs: (.+?) -->\s*")


@dataclass(frozen=True)
class Fence:
    """A block of code, of any language."""

    title: str
    """The heading above it."""
    language: str
    """Empty where none is said: as of a block that is only indented."""
    code: str
    where: str
    """Page and line, for tracebacks."""
    needs: str
    """What `<!-- needs: … -->` before it names, without which it cannot run; else empty."""


@dataclass(frozen=True)
class Block:
    """One block of Python."""

    title: str
    """The heading above it."""
    code: str
    where: str
    """Page and line, for tracebacks."""

    def run(self, **names: Any) -> dict[str, Any]:
        """Run it with these names defined, as a program; what it has defined then."""
        space: dict[str, Any] = {"__name__": "__main__", **names}
        exec(compile(self.code, self.where, "exec"), space)
        return space


def fences(page: Path) -> list[Fence]:
    """Every block of code of a page, in order."""
    found, title, needs = [], "", ""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and before is not None and before.type == "heading_open":
            title = token.content
        elif token.type == "html_block":
            marked = _NEEDS.fullmatch(token.content)
            needs = marked[1] if marked else ""
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            where = f"{page.name}:{token.map[0] + 1}"
            found.append(Fence(title, token.info.strip(), token.content, where, needs))
            needs = ""
        elif token.type != "heading_close":
            needs = ""
    return found


def blocks(page: Path) -> list[Block]:
    """The blocks of Python of a page, in order."""
    return [Block(one.title, one.code, one.where) for one in fences(page) if one.language == "python"]
