"""The services of one wall: the one on which tiles are opened, and those on which some still run out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

from rearview.errors import RearviewError
from rearview.studio.service import Service

__all__ = ["Connect", "Supply"]

Connect = Callable[[str], Awaitable[Service]]
"""The service of a model, by its id, as one wall's tenant; empty: the one that the gateway stands before."""


class Supply:
    """For one event loop. `close` leaves them all."""

    def __init__(self, connect: Connect, on_known: Callable[[], None]) -> None:
        """`on_known` is told when the first service answers, or cannot be used."""
        self._connect, self._on_known = connect, on_known
        self._entered: set[Service] = set()
        self._entering: set[asyncio.Task[Service]] = set()
        self._present = self._begin()
        self._closing: set[asyncio.Task[None]] = set()

    async def present(self) -> Service:
        """Where tiles are opened. Raises RearviewError if it cannot be used."""
        if isinstance(self.known, RearviewError):  # it may be there by now
            self._present = self._begin()
        while True:
            asked = self._present
            try:
                service = await asyncio.shield(asked)
            except RearviewError:
                if asked is self._present:
                    raise
            else:
                if asked is self._present:
                    return service  # Else it was changed in the meantime.

    @property
    def known(self) -> Service | RearviewError | None:
        """The same, without waiting; None: not yet."""
        if not self._present.done() or self._present.cancelled():
            return None
        failure = self._present.exception()
        if failure is None:
            return self._present.result()
        return failure if isinstance(failure, RearviewError) else None

    async def change(self, model: str) -> Service:
        """From now on tiles are opened on another one. Raises RearviewError, and nothing has changed."""
        service = await self._enter(model)
        self._present = asyncio.create_task(_known(service))
        await self._present
        return service

    def leave_unused(self, used: Collection[Service]) -> None:
        """Close those on which no session is any more."""
        for service in self._entered - {*used, self.known}:
            self._entered.discard(service)
            task = asyncio.create_task(_close(service))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close them all."""
        for task in self._entering:
            task.cancel()
        await asyncio.gather(*self._entering, *self._closing, return_exceptions=True)
        for service in self._entered:
            await _close(service)
        self._entered.clear()

    def _begin(self) -> asyncio.Task[Service]:
        task = asyncio.create_task(self._enter(""))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)
        task.add_done_callback(lambda _: self._on_known())
        return task

    async def _enter(self, model: str) -> Service:
        service = await self._connect(model)
        self._entered.add(service)
        return service


async def _known(service: Service) -> Service:
    return service


async def _close(service: Service) -> None:
    with contextlib.suppress(RearviewError):
        await service.close()
