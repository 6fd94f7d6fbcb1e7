"""Opens a tile's sessions under what was asked of it, the changes that hold included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from rearview.client import SettingsChange
from rearview.contract.opening import OpenRequest
from rearview.errors import RearviewError, Refused
from rearview.studio.changing import merged
from rearview.studio.feed import Feed
from rearview.studio.service import Service, options_for

__all__ = ["Opener"]

RETRY_FOR_S = 60.0
"""How long a session that is refused for now is tried again."""


class Opener:
    """Of one tile. For one event loop."""

    def __init__(self, asked: OpenRequest, service: Callable[[], Awaitable[Service]]) -> None:
        """`service`: where tiles are opened now; it may raise RearviewError."""
        self.asked, self._service = asked, service
        """What later sessions are opened with."""
        self._used: list[Service] = []

    @property
    def services(self) -> Sequence[Service]:
        """Those on which a session is being opened."""
        return self._used

    @property
    def max_steps(self) -> int:
        """The most denoising steps of its sessions; 0: the model's."""
        return self.asked.max_steps

    def agree(self, change: SettingsChange) -> None:
        """A change holds: it is asked of later sessions, too."""
        self.asked = replace(self.asked, settings=merged(self.asked.settings, change))

    async def open(self, service: Service) -> Feed:
        """A session there, as large as the one before: the page's frames stay as they are. Raises
        RearviewError.
        """
        session = service.client.open(**options_for(self.asked, service.model))
        self._used.append(service)
        try:
            opened = (await session.__aenter__()).opened
            self.asked = replace(self.asked, width=opened.width, height=opened.height)
            return Feed(session, service)
        finally:
            self._used.remove(service)

    async def open_patiently(self, on_refused: Callable[[RearviewError, float], None]) -> Feed:
        """One where tiles are opened now, tried again while it is refused for now; `on_refused` is told why
        and for how many seconds. Raises the last RearviewError.
        """
        now = asyncio.get_running_loop().time
        give_up_s = now() + RETRY_FOR_S
        while True:
            try:
                return await self.open(await self._service())
            except RearviewError as error:
                wait_s = error.retry_after_s if isinstance(error, Refused) else None
                if wait_s is None or now() + wait_s > give_up_s:
                    raise
                on_refused(error, wait_s)
                await asyncio.sleep(wait_s)
