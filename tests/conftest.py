"""What every test shares: a declared kind, and data that lies outside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.require import skip_or_fail

ROOT = Path(__file__).resolve().parent.parent
KINDS = frozenset({"unit", "integration", "gpu", "load"})

# Ray reads it when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to run tests of which nobody knows what they need: UsageError naming the modules."""
    without = {
        str(item.path) for item in items if KINDS.isdisjoint(mark.name for mark in item.iter_markers())
    }
    if without:
        kinds = ", ".join(sorted(KINDS))
        raise pytest.UsageError(f"no pytestmark of {kinds} in: {', '.join(sorted(without))}")


def _folder(variable: str, holds: str) -> Path:
    folder = Path(os.environ.get(variable) or "/nonexistent")
    if not folder.is_dir():
        skip_or_fail(f"{variable} names no folder of {holds}")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def clips() -> Path:
    """A folder of real video clips."""
    return _folder("REARVIEW_CLIPS", "video clips")


@pytest.fixture(scope="session")
def schemas() -> Path:
    """A folder of published custom resource definitions."""
    return _folder("REARVIEW_SCHEMAS", "custom resource definitions")
