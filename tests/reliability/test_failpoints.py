"""Failpoints: named, counted, off unless armed, and each of them in the code once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rearview.contract.failure import Failure
from rearview.engine.failures import failure_of, is_sticky
from rearview.failpoints import PLACES, arm, reach

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def test_a_place_fails_when_it_is_passed_so_often_and_then_no_more() -> None:
    arm("engine.forward=raise@3x2")
    reach("engine.forward")
    reach("engine.forward")
    reach("engine.commit.before")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"engine\.forward"):
            reach("engine.forward")
    reach("engine.forward")


def test_what_is_raised_is_what_torch_raises_then() -> None:
    for action, no_memory, sticky in (("raise", 0, 0), ("exhaust", 1, 0), ("break", 0, 1)):
        arm(f"engine.forward={action}")
        with pytest.raises(RuntimeError, match=r"engine\.forward") as caught:
            reach("engine.forward")
        assert (failure_of(caught.value) is Failure.NO_MEMORY) == no_memory
        assert is_sticky(caught.value) == sticky


def test_nothing_fails_unless_it_is_armed() -> None:
    for place in PLACES:
        reach(place)
    arm("engine.forward=raise")
    arm("")
    reach("engine.forward")


@pytest.mark.parametrize(
    "text", ["engine=kill", "engine.forward", "engine.forward=burn", "engine.forward=hang:x"]
)
def test_what_is_no_failpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        arm(text)


def test_kill_is_a_kill() -> None:
    code = (
        "from rearview.failpoints import arm, reach\n"
        "arm('engine.forward=kill@2')\n"
        "reach('engine.forward')\n"
        "print('once', flush=True)\n"
        "reach('engine.forward')\n"
        "print('twice')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (-9, "once\n")


def test_every_place_is_in_the_code_once(root: Path) -> None:
    services = root / "services/rearview"
    files = [
        path.read_text(encoding="utf-8") for path in services.rglob("*.py") if path.name != "failpoints.py"
    ]
    reached = [place for text in files for place in re.findall(r'\breach\("([^"]+)"\)', text)]
    assert sorted(reached) == sorted(PLACES)
