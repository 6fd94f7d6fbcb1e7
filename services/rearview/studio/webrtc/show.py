"""What a WHEP watcher sees: the program of a wall as video. It is one more of the wall's viewers.

A picture that a newer one has overtaken is never drawn, and while none comes the last one is sent again, so
that a player neither waits nor gives up.
"""

from __future__ import annotations

import asyncio
from fractions import Fraction

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from rearview.studio.pictures import blended
from rearview.studio.wall import Wall
from rearview.studio.watching import Watching

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
        self._wall, self._watching = wall, Watching(wall)
        self.over = self._watching.over
        """The wall has ended, or the watcher has left."""

    async def recv(self) -> VideoFrame:
        """The newest picture, once there is one that was not seen. Raises MediaStreamError at the end."""
        while not self.over.is_set():
            parts = await self._watching.parts(REPEAT_S)
            if parts:
                try:
                    frame = await asyncio.to_thread(blended, parts)
                except ValueError:  # the model's answers are no pictures
                    continue
                frame.pts, frame.time_base = int(self._wall.now() * CLOCK_HZ), Fraction(1, CLOCK_HZ)
                return frame
        raise MediaStreamError

    def leave(self) -> None:
        """The watcher is gone."""
        self._watching.leave()
