"""docs/operations.md: every alert has its part, and what it tells people to type is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.exposition import generate_latest
from rearview.telemetry.metrics import Metrics, new_registry
from support.commands import check_command

pytestmark = pytest.mark.unit

PAGE = "docs/operations.md"
SECTIONS = {"Install", "Size", "Upgrade", "Drain", "Debug a slow stream", "Alerts", "Back up", "Security"}
THINGS = 3
"""To do first."""


@pytest.fixture
def page(root: Path) -> str:
    return (root / PAGE).read_text(encoding="utf-8")


@pytest.fixture
def rules(root: Path) -> list[dict[str, Any]]:
    manifest = yaml.safe_load((root / "k8s/base/prometheus-rule.yaml").read_text(encoding="utf-8"))
    return [rule for group in manifest["spec"]["groups"] for rule in group["rules"]]


def commands(page: str) -> list[str]:
    """What the page shows of ours: whole lines, and in the middle of a text."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    shown = re.findall(r"`([^`]+)`", text) + [line for block in blocks for line in block.splitlines()]
    found = (re.search(r"(?:^|-- )rearview ((?!\.)[a-z].*)$", line) for line in shown)
    return [match[1] for match in found if match]


def test_the_page_has_its_parts(page: str) -> None:
    assert set(re.findall(r"^## (.+)$", page, re.MULTILINE)) == SECTIONS


def test_every_alert_has_three_things_to_do_and_says_where_they_stand(
    page: str, rules: list[dict[str, Any]]
) -> None:
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    parts = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL))
    assert set(parts) == set(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"{PAGE}#{name.lower()}"
        assert re.findall(r"^(\d)\. ", parts[name], re.MULTILINE) == [str(n + 1) for n in range(THINGS)], name


def test_every_command_of_ours_is_one(page: str) -> None:
    found = commands(page)
    assert len(found) >= 8
    for line in found:
        check_command(shlex.split(line))


@pytest.mark.parametrize("line", ["prob --server x", "probe --servr x", "probe more", "drain", "sessions"])
def test_a_command_that_is_none_is_found(line: str) -> None:
    with pytest.raises(LookupError):
        check_command(shlex.split(line))


def test_every_metric_that_it_names_is_there(page: str, rules: list[dict[str, Any]]) -> None:
    registry = new_registry()
    Metrics(registry)
    exposed = set(re.findall(r"^# TYPE (\w+)", generate_latest(registry).decode(), re.MULTILINE))
    named = set(re.findall(r"(?<![\w:/-])rearview_\w+(?!:)\b", re.sub(r"\w+:rearview_\w+:\w+", "", page)))
    assert named
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= exposed
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert set(re.findall(r"\w+:rearview_\w+:\w+", page)) <= recorded


def test_every_file_that_it_leads_to_is_there(page: str, root: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (root / "docs" / target).exists(), target
    targets = (root / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"`make ([a-z-]+)`", page):
        assert re.search(rf"^{name}:", targets, re.MULTILINE), name
