"""Image bytes ⇄ pixels off the event loop, timed and told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rearview.contract.events import Coding, Events, ImageCoded
from rearview.contract.frame import ANSWER, PICTURE, Frame
from rearview.contract.stream import ImageFormat
from rearview.ingress.codec import decode_image, encode_image
from rearview.ingress.intake import FrameIn
from rearview.ingress.similarity import Thumbnail, thumbnail

__all__ = ["Coder", "Decoded"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the bytes of an image hold."""

    picture: NDArray[np.uint8]
    """(H, W, 3); opaque bytes (N,)."""
    seen: Thumbnail | None
    """None if nobody asked, or there is no image."""
    seconds: float


class Coder:
    """Decodes and encodes with threads of `executor`. For one event loop."""

    def __init__(self, executor: Executor, events: Events, clock: Callable[[], float]) -> None:
        self._executor, self._events, self._clock = executor, events, clock

    async def decode(self, frame: FrameIn, width: int, height: int, *, look: bool) -> Decoded:
        """The pixels, and with `look` their thumbnail. Raises BadImage."""
        if frame.format is ImageFormat.OPAQUE:
            return Decoded(np.frombuffer(frame.image, np.uint8), None, 0.0)
        picture, seconds = await self._timed(
            Coding.DECODE, partial(decode_image, frame.image, frame.format, width, height)
        )
        seen = await self._in_thread(partial(thumbnail, picture)) if look else None
        return Decoded(picture, seen, seconds)

    async def encode(
        self, frame: Frame[NDArray[Any]], format: ImageFormat, jpeg_quality: int
    ) -> tuple[bytes, float]:
        """What a frame carries that has come back as its client's image, and the seconds that it took. What
        an ingress before this one has encoded stays as it is.
        """
        assert frame.planes is not None, "a lost frame has no picture"
        if (answer := frame.planes.get(ANSWER)) is not None:
            return answer.tobytes(), 0.0
        picture = frame.planes[PICTURE]
        if format is ImageFormat.OPAQUE:
            return picture.tobytes(), 0.0
        return await self._timed(Coding.ENCODE, partial(encode_image, picture, format, jpeg_quality))

    async def _timed(self, coding: Coding, work: Callable[[], T]) -> tuple[T, float]:
        started_s = self._clock()
        result = await self._in_thread(work)
        seconds = self._clock() - started_s
        self._events(ImageCoded(coding, seconds))
        return result, seconds

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
