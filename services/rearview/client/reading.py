"""Read a blocking iterable in a thread of its own, one item at a time.

The thread is a daemon that nobody joins: a source that never gives its next item holds up neither the loop's
end nor the process's. Left before its end, it goes when the item that it waits for has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["in_thread"]

_T = TypeVar("_T")
_Asked = asyncio.Future[Any]


async def in_thread(items: Iterable[_T]) -> AsyncGenerator[_T, None]:
    """The items, each asked for when it is wanted; raises what `items` raises."""
    end = object()
    asked: SimpleQueue[_Asked | None] = SimpleQueue()
    work = (iter(items), end, asked)
    threading.Thread(
        target=copy_context().run, args=(_read, *work), name="rearview-source", daemon=True
    ).start()
    try:
        while True:
            future: _Asked = asyncio.get_running_loop().create_future()
            asked.put(future)
            item = await future
            if item is end:
                return
            yield item
    finally:
        asked.put(None)


def _read(iterator: Iterator[Any], end: object, asked: SimpleQueue[_Asked | None]) -> None:
    while (future := asked.get()) is not None:
        item, failure = None, None
        try:
            item = next(iterator, end)
        except BaseException as error:  # the thread's edge: who asked is told
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_tell, future, item, failure)


def _tell(future: _Asked, item: object, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(item)
    else:
        future.set_exception(failure)
