"""Progress for people and for logs: a moving bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Steps", "show_progress"]

LINE_INTERVAL_S = 5.0
"""Where no bar can move."""


class Steps(Protocol):
    """What a command tells of its progress."""

    def step(self, text: str) -> None:
        """A new step begins; how long it takes is not known."""

    def begin(self, text: str, total: int | None) -> None:
        """Frames will be counted now."""

    def advance(self) -> None:
        """One more frame."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def show_progress(console: Console) -> Steps:
    """Steps on `console`."""
    return _Bar(console) if console.is_terminal else _Lines(console)


class _Bar:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
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

    def begin(self, text: str, total: int | None) -> None:
        self._progress.reset(self._task, total=total, description=text)
        self._started_s = time.monotonic()

    def advance(self) -> None:
        done = self._progress.tasks[0].completed + 1
        rate = f"{done / max(1e-3, time.monotonic() - self._started_s):.1f} FPS"
        self._progress.update(self._task, advance=1, rate=rate)


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
        of = f" of {self._total}" if self._total else ""
        self._console.print(f"{self._text}: {self._done}{of} frames, {rate:.1f} FPS{left}", highlight=False)
