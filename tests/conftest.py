"""What every test shares: a declared kind, and data that lies outside the project."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support import interpreter, service
from support.require import skip_or_fail
from support.workers import OneRay, starts_ray

assert interpreter.IS_ASKED_FOR or os.environ.get("TRITON_INTERPRET") != "1", "kernels are to run on the GPU"
ROOT = Path(__file__).resolve().parent.parent
KINDS = frozenset({"unit", "integration", "gpu", "load"})

# Ray reads them when it is imported. Its own niceness is 15: beside other tests its workers would starve.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
# What the suite keeps from start to start is no user's, and no user's is what it meets.
os.environ["REARVIEW_CACHE"] = tempfile.mkdtemp(prefix="rearview-cache-")
atexit.register(shutil.rmtree, os.environ["REARVIEW_CACHE"], ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many ingresses a service of these tests has; without it one, and two where a mark asks for both."""
    parser.addoption("--ingresses", type=int, metavar="N", help="every service in this process has N of them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `two_ingresses` with one, too."""
    wanted = metafunc.config.getoption("--ingresses")
    if wanted is None and metafunc.definition.get_closest_marker("two_ingresses"):
        metafunc.parametrize("ingresses", [1, 2], indirect=True, ids=["one ingress", "two ingresses"])


@pytest.fixture(autouse=True)
def ingresses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many a service has in this test."""
    wanted: int = getattr(request, "param", None) or request.config.getoption("--ingresses") or 1
    alone = request.node.get_closest_marker("one_ingress")
    if wanted > 1 and alone is not None:
        pytest.skip(f"with one ingress alone: {alone.args[0]}")
    monkeypatch.setattr(service, "ingresses", wanted)
    return wanted


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to run tests of which nobody knows what they need: UsageError naming the modules."""
    without = {
        str(item.path) for item in items if KINDS.isdisjoint(mark.name for mark in item.iter_markers())
    }
    if without:
        kinds = ", ".join(sorted(KINDS))
        raise pytest.UsageError(f"no pytestmark of {kinds} in: {', '.join(sorted(without))}")
    items.sort(key=lambda item: not starts_ray(item.nodeid))  # The longest first: nobody waits for it then.


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no collection need look through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRay:
    """Of `-n 2`."""
    return OneRay(config, log)


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
