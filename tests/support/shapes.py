"""The shapes of what commands print with `--json`, as docs/cli.md tells them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["documented", "shaped"]

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def documented() -> dict[str, tuple[str, list[str]]]:
    """By command: list or object, and the fields."""
    rows = re.findall(
        r"^\| `([a-z ]+)` \| (list|object) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    fields = {}
    for name, kind, said in rows:
        outermost = re.sub(r"\(.*?\)|: of each .*", "", said)
        fields[name] = (kind, re.findall(r"`(\w+)`", outermost))
    fields["sessions list"] = ("list", fields["sessions get"][1])
    fields["demo"] = fields["translate"]
    return fields


def shaped(command: str, said: Any) -> Any:
    """`said`, if it is as documented."""
    kind, fields = documented()[command]
    assert isinstance(said, list if kind == "list" else Mapping)
    for each in said if kind == "list" else [said]:
        assert sorted(each) == sorted(fields), command
    return said
