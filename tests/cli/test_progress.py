"""What a terminal shows while something goes on: whose time it is, and nothing while nothing does."""

from __future__ import annotations

import io
import time

import pytest
from rearview.cli.progress import Steps, show_progress
from rearview.cli.words import counted
from rich.console import Console

pytestmark = pytest.mark.unit


@pytest.fixture
def terminal() -> Console:
    """100 columns, kept as text."""
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100)


def shown(terminal: Console) -> str:
    """All of it."""
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def goes_on(terminal: Console) -> bool:
    """Whether something is drawn within a moment."""
    before = shown(terminal)
    time.sleep(0.3)
    return shown(terminal) != before


def translate(progress: Steps, frames: int) -> None:
    for _ in range(frames):
        progress.advance()
        time.sleep(0.05)


def test_a_step_of_unknown_length_shows_the_time_that_it_takes_and_nothing_that_is_left(
    terminal: Console,
) -> None:
    with show_progress(terminal) as progress:
        progress.step("starting the service")
        time.sleep(1.2)
    assert "starting the service" in shown(terminal)
    assert " 1 s" in shown(terminal)
    assert "left" not in shown(terminal)
    assert "?" not in shown(terminal).replace("\x1b[?25", "")


def test_frames_are_counted_with_their_rate_and_the_time_that_is_left(terminal: Console) -> None:
    with show_progress(terminal) as progress:
        progress.step("starting the service")
        progress.begin("translating", 30)
        translate(progress, 10)
        assert goes_on(terminal)
    last = shown(terminal).split("\r")[-3]
    assert "translating" in last
    assert "10 of 30 frames" in last
    assert "FPS" in last
    assert "s left" in last


@pytest.mark.parametrize(("count", "said"), [(0, "0 frames"), (1, "1 frame"), (2, "2 frames")])
def test_one_is_one(count: int, said: str) -> None:
    assert counted(count, "frame") == said


def test_nothing_moves_between_a_pause_and_the_next_step(terminal: Console) -> None:
    with show_progress(terminal) as progress:
        progress.step("starting the service")
        assert goes_on(terminal)
        progress.pause()
        assert not goes_on(terminal)
        progress.step("stopping the service")
        assert goes_on(terminal)
    assert not goes_on(terminal)
    assert "stopping the service" in shown(terminal)
