"""Whether a session's frames may enter its lane, and word of those that come back. For one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Gate"]


class Gate:
    """Between a session and its lane."""

    def __init__(self) -> None:
        self._is_shut, self._holders = False, 0
        self._open = asyncio.Event()
        self._open.set()
        self._came_back = asyncio.Event()
        self.standing_still = asyncio.Lock()
        """Held by whoever freezes the lane: one at a time."""

    @property
    def is_open(self) -> bool:
        """Whether frames are let in."""
        return self._open.is_set()

    def shut(self) -> None:
        """There is no lane."""
        self._is_shut = True
        self._open.clear()

    def open(self) -> None:
        """There is a lane: let frames in, unless somebody holds them."""
        self._is_shut = False
        self._let_in()

    def hold(self) -> None:
        """Let no further frame in until `release`, whatever becomes of the lane."""
        self._holders += 1
        self._open.clear()

    def release(self) -> None:
        """Undo one `hold`."""
        self._holders -= 1
        self._let_in()

    def came_back(self) -> None:
        """A frame has come back, or it is known that none will: who waits is to look again."""
        self._came_back.set()

    async def wait(self, until: Callable[[], bool]) -> None:
        """Return when `until()` holds, which is asked again whenever a frame has come back."""
        while not until():
            self._came_back.clear()
            await self._came_back.wait()

    async def passage(self, is_full: Callable[[], bool]) -> None:
        """Return when the next frame may enter; `is_full`: frames that came back must make room first."""
        while not self._open.is_set() or is_full():
            await self._open.wait()
            await self.wait(lambda: not is_full())

    def _let_in(self) -> None:
        if not self._is_shut and not self._holders:
            self._open.set()
