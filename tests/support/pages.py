"""The code on a page of documentation, to be run as it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Block", "blocks"]

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        titles = re.findall(r"^#+ (.*)$", before, re.MULTILINE)
        found.append(Block(titles[-1], match[1], f"{page.name}:{before.count(chr(10)) + 1}"))
    return found
