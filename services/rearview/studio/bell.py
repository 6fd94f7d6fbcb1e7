"""Wakes whoever waits for a change, to look again whether it is the one they wait for."""

from __future__ import annotations

import asyncio

__all__ = ["Bell"]


class Bell:
    """For one event loop. Who begins to wait after a ring waits for the next one."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake all that wait now."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self) -> None:
        """Return with the next ring."""
        await self._rung.wait()
