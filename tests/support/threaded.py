"""A service on an event loop of its own, for tests that call it from a plain thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rearview.config import ServiceConfig

from support.raw_stream import quickly_stopped
from support.service import in_process_service

__all__ = ["serving"]


@contextmanager
def serving(config: ServiceConfig) -> Iterator[str]:
    """The address of a whole service. Raises AssertionError if it does not come up within a minute."""
    loop, found, stop = asyncio.new_event_loop(), [""], asyncio.Event()
    is_ready = threading.Event()

    async def serve() -> None:
        with quickly_stopped():
            async with in_process_service(config) as service:
                found[0] = service.address
                is_ready.set()
                await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert is_ready.wait(60)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
