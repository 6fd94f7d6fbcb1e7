"""Tests that JavaScript modules have in their own language: where they are, and how they are run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from support.require import skip_or_fail

__all__ = ["INSTALLED", "PURE", "astray", "is_test", "passed"]

PURE = ("tests/studio/state", "clients/web/test")
"""Run where they are."""
INSTALLED = ("clients/node/test",)
"""Run beside the package as users get it, with its dependencies."""


def is_test(name: str) -> bool:
    """Whether a file holds tests of modules."""
    return re.search(r"\.test\.[cm]?js$", name) is not None


def astray(files: Mapping[str, str], folders: Iterable[str]) -> set[str]:
    """Of `files`, texts by their paths: those that hold no test, or that nobody runs.

    And of `folders`, which are run, those that have no tests.
    """
    tests = {name: text for name, text in files.items() if is_test(name)}
    homes = {name: str(PurePosixPath(name).parent) for name in tests}
    run = set(folders)
    idle = {name for name, home in homes.items() if home not in run}
    empty = {name for name, text in tests.items() if not re.search(r"^\s*test\(", text, flags=re.MULTILINE)}
    return idle | empty | (run - set(homes.values()))


def passed(folder: Path, cwd: Path) -> int:
    """Run the tests of `folder`; how many there are, all of which pass."""
    if shutil.which("node") is None:
        skip_or_fail("node is missing")
    files = sorted(path for path in folder.iterdir() if is_test(path.name))
    assert files, folder
    run = subprocess.run(["node", "--test", *files], cwd=cwd, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr
    found = re.search(r"^\D*pass (\d+)", run.stdout, flags=re.MULTILINE)
    assert found is not None, run.stdout[-6000:]
    return int(found[1])
