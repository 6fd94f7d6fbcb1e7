"""A viewer of a wall's program without a page: for whatever shows it elsewhere than in a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress

from rearview.errors import Reason, Refused
from rearview.studio.outbox import Outbox
from rearview.studio.pictures import Part, Screen
from rearview.studio.protocol import PictureOut
from rearview.studio.wall import Wall

__all__ = ["Watching"]


class Watching:
    """For one event loop. It ends with its wall, or by `leave`."""

    def __init__(self, wall: Wall) -> None:
        """Raises Refused if the wall has as many viewers as it may have."""
        self.wall, self._outbox, self._screen = wall, Outbox(), Screen()
        self._news = asyncio.Event()
        if not wall.viewers.join(self._outbox, wall.now()):
            raise Refused(Reason.CALLS_EXHAUSTED, "the wall has as many viewers as it may have")
        self.over = asyncio.Event()
        """The wall has ended, or the watcher has left."""
        self._reader = asyncio.create_task(self._hear())

    async def parts(self, within_s: float) -> Sequence[Part]:
        """The pictures on program, as JPEGs with their shares: as soon as one is new, else after `within_s`
        as they were. Empty: none has come yet, or it is over.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._news.wait()
        self._news.clear()
        return [] if self.over.is_set() else self._screen.parts(self.wall.now())

    def leave(self) -> None:
        """The watcher is gone."""
        self.wall.viewers.leave(self._outbox)
        self._outbox.close()
        self._end()
        self._reader.cancel()

    async def _hear(self) -> None:
        while (item := await self._outbox.next()) is not None:
            if isinstance(item, bytes):
                picture = PictureOut.read(item)
                self._screen.show(picture.tile, picture.picture)
            else:
                self._screen.turn_to(json.loads(item), self.wall.now())
            self._news.set()
        self._end()

    def _end(self) -> None:
        self.over.set()
        self._news.set()
