"""What a WHEP watcher sees: the program of a wall as video. It is one more of the wall's viewers.

A picture that a newer one has overtaken is never drawn, and while none comes the last one is sent again, so
that a player neither waits nor gives up.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from fractions import Fraction

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from rearview.errors import Reason, Refused
from rearview.studio.outbox import Outbox
from rearview.studio.pictures import Screen, blended
from rearview.studio.protocol import PictureOut
from rearview.studio.wall import Wall

__all__ = ["Show"]

REPEAT_S = 0.5
"""After so long without a picture the last one is sent again."""
CLOCK_HZ = 90_000


class Show(MediaStreamTrack):
    """A video track. It ends with its wall, or by `leave`."""

    kind = "video"

    def __init__(self, wall: Wall) -> None:
        """Raises Refused if the wall has as many viewers as it may have."""
        super().__init__()
        self._wall, self._outbox, self._screen = wall, Outbox(), Screen()
        self._news = asyncio.Event()
        if not wall.viewers.join(self._outbox, wall.now()):
            raise Refused(Reason.CALLS_EXHAUSTED, "the wall has as many viewers as it may have")
        self.over = asyncio.Event()
        """The wall has ended, or the watcher has left."""
        self._reader = asyncio.create_task(self._hear())

    async def recv(self) -> VideoFrame:
        """The newest picture, once there is one that was not seen. Raises MediaStreamError at the end."""
        while not self.over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(REPEAT_S):
                    await self._news.wait()
            self._news.clear()
            parts = self._screen.parts(self._wall.now())
            if parts and not self.over.is_set():
                try:
                    frame = await asyncio.to_thread(blended, parts)
                except ValueError:  # the model's answers are no pictures
                    continue
                frame.pts, frame.time_base = int(self._wall.now() * CLOCK_HZ), Fraction(1, CLOCK_HZ)
                return frame
        raise MediaStreamError

    def leave(self) -> None:
        """The watcher is gone."""
        self._wall.viewers.leave(self._outbox)
        self._outbox.close()
        self._end()
        self._reader.cancel()

    async def _hear(self) -> None:
        while (item := await self._outbox.next()) is not None:
            if isinstance(item, bytes):
                picture = PictureOut.read(item)
                self._screen.show(picture.tile, picture.picture)
            else:
                self._screen.turn_to(json.loads(item), self._wall.now())
            self._news.set()
        self._end()

    def _end(self) -> None:
        self.over.set()
        self._news.set()
