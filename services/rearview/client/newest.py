"""Of what comes by itself, always the newest: a place to wait in which a newer item replaces an older one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import TypeVar

__all__ = ["newest"]

MAX_WAITING = 16
"""Items that are not replaced by newer ones may wait, too, but not without bound."""

_T = TypeVar("_T")


async def newest(
    items: AsyncIterable[_T], put: Callable[[list[_T], _T], list[_T]]
) -> AsyncGenerator[_T, None]:
    """The items that wait when one is asked for, in order; raises what `items` raises, after them.

    `items` is read without a pause. `put(waiting, item)` says what waits from then on, and counts what it
    leaves out.
    """
    waiting: list[_T] = []
    changed = asyncio.Event()

    async def read() -> None:
        nonlocal waiting
        try:
            async for item in items:
                waiting = put(waiting, item)
                changed.set()
                while len(waiting) >= MAX_WAITING:
                    changed.clear()
                    await changed.wait()
        finally:
            changed.set()

    reader = asyncio.create_task(read(), name="rearview-newest")
    try:
        while waiting or not reader.done():
            if waiting:
                item, *waiting = waiting
                changed.set()
                yield item
            else:
                changed.clear()
                await changed.wait()
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
