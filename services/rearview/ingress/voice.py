"""The way out of a stream. Who listens hears something again and again, so that silence has a meaning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc

from rearview.control.leases import on_its_way
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["HEARTBEAT_S", "Voice"]

T = TypeVar("T")

HEARTBEAT_S = 2.0
"""A client hears something at least so often: by that it knows an ingress that has frozen."""


class Voice:
    """Writes the responses of one call."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], clock: Callable[[], float]) -> None:
        self._context, self._clock = context, clock
        self.told_credit = 0
        """`frame_credit` of the last response."""
        self.spoke_s = clock()
        """When it was written."""

    async def say(self, response: pb.TranslateResponse) -> None:
        """Write it, as soon as the client reads."""
        await self._context.write(response)
        self.told_credit, self.spoke_s = response.frame_credit, self._clock()

    async def soon(self, resumed: Coroutine[Any, Any, T]) -> T:
        """What the resume of a session comes to; nothing may be said before. Raises what it raises, and
        Refused, with a short retry, if that is too long to be silent: a session that is taken over goes on
        its way then, and whoever asks again finds it further on.
        """
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                return await resumed
        except TimeoutError:
            raise on_its_way() from None

    async def listens(self, change: Coroutine[Any, Any, None]) -> bool:
        """Wait for `change`. False: it has not come, and it is time to say something."""
        try:
            async with asyncio.timeout(self.spoke_s + HEARTBEAT_S - self._clock()):
                await change
        except TimeoutError:
            return False
        return True
