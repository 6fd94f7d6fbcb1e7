"""Progress for people and for logs: a moving bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from rearview.cli.words import counted

__all__ = ["Steps", "show_progress"]

LINE_INTERVAL_S = 5.0
"""Where no bar can move."""


class Steps(Protocol):
    """What a command tells of its progress."""

    def step(self, text: str) -> None:
        """A new step begins; how long it takes is not known."""

    def note(self, text: str) -> None:
        """Something to know that stays to be read."""

    def begin(self, text: str, total: int | None) -> None:
        """Frames will be counted now."""

    def advance(self) -> None:
        """One more frame."""

    def pause(self) -> None:
        """Nothing is going on until the next step."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def show_progress(console: Console) -> Steps:
    """Steps on `console`."""
    return _Bar(console) if console.is_terminal else _Lines(console)


class _Bar:
    def __init__(self, console: Console) -> None:
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Figures()
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("starting", total=None, rate="")
        self._started_s = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        if not self._progress.live.is_started:
            self._progress.reset(self._task)
            self._progress.start()

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, text: str, total: int | None) -> None:
        self._progress.reset(self._task, total=total, description=text, rate="")
        self._started_s = time.monotonic()

    def advance(self) -> None:
        done = self._progress.tasks[0].completed + 1
        taken_s = max(1e-3, time.monotonic() - self._started_s)
        rate = f"{done / taken_s:.1f} FPS" if done > 1 else ""
        self._progress.update(self._task, advance=1, rate=rate)

    def pause(self) -> None:
        self._progress.stop()


class _Figures(ProgressColumn):
    """How long a step takes already; of frames how many there are, how fast they come, and how long it takes
    yet.
    """

    def render(self, task: Task) -> Text:
        if task.completed == 0 and task.total is None:
            return Text(_clock(task.elapsed))
        count = _frames(int(task.completed), int(task.total or 0))
        left = "" if task.time_remaining is None else f"{_clock(task.time_remaining)} left"
        return Text("  ".join(filter(None, (count, task.fields["rate"], left))))


def _frames(done: int, total: int) -> str:
    return f"{done} of {counted(total, 'frame')}" if total else counted(done, "frame")


def _clock(seconds: float | None) -> str:
    """ "15 s" or "1:05"."""
    whole = int(seconds or 0)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02}"


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._text, self._total, self._done = "", 0, 0
        self._started_s = self._printed_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self, text: str) -> None:
        self._console.print(f"{text} …", highlight=False)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, text: str, total: int | None) -> None:
        self._text, self._total, self._done = text, total or 0, 0
        self._started_s = self._printed_s = time.monotonic()
        self.step(text)

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._printed_s < LINE_INTERVAL_S:
            return
        self._printed_s = now
        rate = self._done / (now - self._started_s)
        left = f", {max(0, self._total - self._done) / rate:.0f} s left" if self._total else ""
        count = _frames(self._done, self._total)
        self._console.print(f"{self._text}: {count}, {rate:.1f} FPS{left}", highlight=False)

    def pause(self) -> None:
        return None
