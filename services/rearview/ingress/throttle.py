"""When a stream is read again.

What a tenant sends beyond its rates costs everyone beside it, as long as somebody reads it: a frame of a
megabyte is copied three times before it is refused. So a stream that is over a rate is not read for a while.
Its bytes stay in the connection, whose flow control stops the sender. Within the rate, large frames are read
one by one, and so are those that take long of a replica: a second's worth of them at once would keep the
event loop or the engine, which all tenants share, busy for a good part of that second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rearview.config import TenantConfig
from rearview.control.admission import Admission

__all__ = ["Throttle"]

MAX_PAUSE_S = 1.0
"""A stream is read again after so long: its credit and its end come the same way as its frames."""


HEAVY_FRAME_S = 0.02
"""A frame that takes so long of a replica is read by itself: others wait for its forwards."""


class Throttle:
    """That of one stream."""

    def __init__(
        self, context: Any, admission: Admission, tenant: TenantConfig, clock: Callable[[], float]
    ) -> None:
        """`context`: that of the call, a `ReadingContext`."""
        self._context, self._admission = context, admission
        self._tenant, self._clock = tenant, clock
        self._until_s = self._share = 0.0
        self.frame_s = 0.0
        """What a frame of the stream's session takes of a replica."""

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`, when the stream may be read."""
        if (wait_s := self._until_s - self._clock()) > 0:
            await asyncio.sleep(wait_s)
        message = await self._context.read()
        now = self._clock()
        self._share = self._admission.message_share(self._context.num_bytes)
        self._pause(now, self._admission.count_shares(self._tenant, self._share, now))
        return message

    def takes_frame(self, now: float) -> bool:
        """Whether a frame that has come fits the tenant's rate."""
        wait_s = self._admission.take_frame(self._tenant, now)
        heavier = max(0.0, min(1.0, self.frame_s / HEAVY_FRAME_S) - self._share)
        self._pause(now, max(wait_s, self._admission.count_shares(self._tenant, heavier, now)))
        return not wait_s

    def took_control(self, now: float) -> None:
        """A control has come."""
        self._pause(now, self._admission.count_control(self._tenant, now))

    def _pause(self, now: float, wait_s: float) -> None:
        self._until_s = max(self._until_s, now + min(wait_s, MAX_PAUSE_S))
