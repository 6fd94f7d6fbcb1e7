"""docs/troubleshooting.md has every reason that anybody may be told, and names nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest
from rearview.contract.stream import NoticeKind
from rearview.errors import DropReason, Reason
from rearview.models.failure import FetchReason
from rearview.telemetry.metrics import Metrics, new_registry
from support.commands import check_shell

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
SECTION_OF = {"Frames are missing": DropReason, "A model cannot be fetched": FetchReason}
"""Where all reasons of a kind stand; those of `Reason` stand in two others."""
OF_SESSIONS = ("It does not answer, or refuses", "A stream ends")
CODE = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def told(text: str, *sections: str) -> Iterator[str]:
    """What stands first in the rows of these sections."""
    for title in sections:
        part = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        for row in re.findall(r"^\| ([A-Z_, ]+) \|", part, re.MULTILINE):
            yield from row.split(", ")


def test_every_reason_has_its_row_where_it_belongs(text: str) -> None:
    assert sorted(told(text, *OF_SESSIONS)) == sorted(one.name for one in Reason)
    for title, kind in SECTION_OF.items():
        assert sorted(told(text, title)) == sorted(one.name for one in kind)


def test_no_reason_is_named_that_there_is_not(text: str) -> None:
    known = {one.name for kind in (Reason, DropReason, FetchReason, NoticeKind) for one in kind}
    assert {name for name in CODE.findall(text) if not name.startswith("REARVIEW_")} <= known


def test_every_command_and_metric_that_it_names_is_there(text: str) -> None:
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    commands = [each for each in re.findall(r"`([^`\n]+)`", outside) if each.startswith("rearview ")]
    whole = [each for each in commands if each != "rearview translate"]  # named, not shown
    assert len(whole) >= 10
    for command in whole:
        check_shell(command)
    registry = new_registry()
    Metrics(registry)
    exposed = set(re.findall(r"^# TYPE (\w+)", generate_latest(registry).decode(), re.MULTILINE))
    assert set(re.findall(r"rearview_\w+", text)) <= exposed
