"""An ingress on an event loop of its own, which can stand still as a process does that was stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from rearview.ingress.server import IngressServer
from rearview.ingress.service import Ingress

from support.service import InProcessService

__all__ = ["FreezableIngress", "freezable"]

T = TypeVar("T")


class FreezableIngress:
    """Runs in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._awake = threading.Event()
        self._awake.set()
        self.server: IngressServer

    @property
    def ingress(self) -> Ingress:
        return self.server._ingress

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work` on its loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def start(self, service: InProcessService) -> None:
        async def build() -> None:
            ingress = Ingress(service.config, "frozen", "node", service.members, service.directory)
            self.server = IngressServer(ingress)
            await self.server.start()

        await self.run(build())

    async def freeze(self) -> None:
        """From now on it does nothing, until `thaw`; its connections stay."""
        self._awake.clear()
        asleep = threading.Event()

        def sleep() -> None:
            asleep.set()
            self._awake.wait()

        self._loop.call_soon_threadsafe(sleep)
        await asyncio.to_thread(asleep.wait)

    def thaw(self) -> None:
        self._awake.set()

    async def stop(self) -> None:
        self.thaw()
        await self.run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()


@asynccontextmanager
async def freezable(service: InProcessService) -> AsyncIterator[FreezableIngress]:
    """One more ingress of `service`."""
    one = FreezableIngress()
    await one.start(service)
    try:
        yield one
    finally:
        await one.stop()
