"""The workflow of a hosted CI, which never ran: its form, and every line of it that can be read here."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import check_command

pytestmark = pytest.mark.unit

PATH = ".github/workflows/kubernetes.yaml"
KEYS = {"name", "on", "permissions", "concurrency", "env", "jobs"}
STEP = {"name", "uses", "with", "run", "if"}


@pytest.fixture
def text(root: Path) -> str:
    return (root / PATH).read_text(encoding="utf-8")


@pytest.fixture
def steps(text: str) -> list[dict[str, Any]]:
    (job,) = yaml.load(text, yaml.BaseLoader)["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def test_it_says_that_it_never_ran_and_starts_by_hand_until_it_did(text: str) -> None:
    content = yaml.load(text, yaml.BaseLoader)
    assert set(content) == KEYS
    if "NEVER RUN" in text:
        assert set(content["on"]) == {"workflow_dispatch"}
    assert content["permissions"] == {"contents": "read"}


def test_each_step_uses_a_version_or_runs_what_a_shell_reads(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        assert set(step) <= STEP, step
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        else:
            command = ["bash", "-n", "-c", step["run"]]
            run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            assert run.returncode == 0, run.stderr


def test_what_it_runs_of_ours_is_there(steps: list[dict[str, Any]], root: Path) -> None:
    lines = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ").splitlines()
    ours = [re.split(r"\s(?:&&|\|\||;|>)", line.split("rearview ", 1)[1])[0] for line in lines if runs(line)]
    assert len(ours) >= 3
    for words in ours:
        check_command(shlex.split(words))
    for word in " ".join(lines).split():
        if word.startswith(("k8s/", "deploy/", "services/")):
            assert (root / word).exists(), word


def runs(line: str) -> bool:
    return re.match(r"\s*(?:\.venv/bin/)?rearview (?!:)", line) is not None


def test_the_upgrade_changes_the_tag_that_the_overlay_has(steps: list[dict[str, Any]], root: Path) -> None:
    (changed,) = re.findall(
        r"s/(newTag: \w+)/newTag: (\w+)/' (\S+)", "\n".join(s.get("run", "") for s in steps)
    )
    former, tag, path = changed
    assert former in (root / path).read_text(encoding="utf-8")
    assert any(f"rearview:{tag}" in step.get("run", "") for step in steps)
