"""The alert rules: valid, about metrics that exist, and firing when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.exposition import generate_latest
from rearview.telemetry.metrics import Metrics, new_registry
from support.require import skip_or_fail

pytestmark = pytest.mark.unit


@pytest.fixture
def rules(root: Path, tmp_path: Path) -> Path:
    """The rules as a plain rules file, as Prometheus reads them."""
    manifest = yaml.safe_load((root / "k8s/base/prometheus-rule.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": manifest["spec"]["groups"]}), encoding="utf-8")
    return path


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        skip_or_fail("promtool is not installed (Debian: apt install prometheus)")
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_rules_are_valid(rules: Path) -> None:
    run = promtool("check", "rules", "--lint=all", "--lint-fatal", rules)
    assert run.returncode == 0, run.stdout + run.stderr


def test_rules_fire_when_they_should_and_only_then(rules: Path) -> None:
    cases = rules.with_name("cases.yaml")
    cases.write_text(
        (Path(__file__).parent / "alerts_cases.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    run = promtool("test", "rules", cases)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_case_that_fires(rules: Path) -> None:
    groups = yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]
    cases = yaml.safe_load((Path(__file__).parent / "alerts_cases.yaml").read_text(encoding="utf-8"))
    fired = {
        case["alertname"]
        for test in cases["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule} == fired


def test_every_record_has_a_case_with_its_value(rules: Path) -> None:
    groups = yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]
    cases = yaml.safe_load((Path(__file__).parent / "alerts_cases.yaml").read_text(encoding="utf-8"))
    exprs = [case["expr"] for test in cases["tests"] for case in test.get("promql_expr_test", ())]
    asked = {name for expr in exprs for name in re.findall(r"\w+:rearview_\w+:\w+", expr)}
    assert {rule["record"] for group in groups for rule in group["rules"] if "record" in rule} == asked


def test_rules_ask_only_for_metrics_that_the_service_has(rules: Path) -> None:
    groups = yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]
    asked = {
        name
        for group in groups
        for rule in group["rules"]
        for name in re.findall(r"(?<![\w:])rearview_\w+", f"{rule['expr']} {rule.get('annotations')}")
    }
    registry = new_registry()
    Metrics(registry)
    exposed = set(re.findall(r"^# TYPE (\w+)", generate_latest(registry).decode(), re.MULTILINE))
    assert asked
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} <= exposed
