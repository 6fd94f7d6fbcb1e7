"""One answer for all who ask at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Shared"]

T = TypeVar("T")


class Shared(Generic[T]):
    """A question that many ask: it is put once at a time, and whoever comes while it is being answered shares
    the next answer. So nobody gets one that is older than his question, and a crowd costs no more than two.
    For one event loop.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._current: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """An answer. Raises what the question raises; goes on for the others when cancelled."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask_after(self._current))
            self._next.add_done_callback(_heard)
        return await asyncio.shield(self._next)

    async def settle(self) -> None:
        """Return when nothing is being asked."""
        while under_way := {each for each in (self._current, self._next) if each and not each.done()}:
            await asyncio.wait(under_way)

    async def _ask_after(self, current: asyncio.Task[T] | None) -> T:
        if current is not None and not current.done():
            await asyncio.wait([current])
        self._current, self._next = self._next, None
        return await self._ask()


def _heard(task: asyncio.Task[T]) -> None:
    """An error that nobody waited for is no fault."""
    if not task.cancelled():
        task.exception()
