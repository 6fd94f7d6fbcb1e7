"""Image bytes ⇄ pixels off the event loop, timed and told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rearview.contract.events import Coding, Events, ImageCoded
from rearview.contract.frame import ANSWER, PICTURE, Frame, control_plane
from rearview.contract.stream import ImageFormat
from rearview.errors import DropReason
from rearview.ingress.codec import BadImage, decode_image, encode_image
from rearview.ingress.intake import ControlIn, Waiting
from rearview.ingress.similarity import Thumbnail, thumbnail
from rearview.ingress.tracing import FrameTraces

__all__ = ["Coder", "Decoded"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the bytes of an image hold."""

    planes: Mapping[str, NDArray[np.uint8]]
    """What goes into the lane: the picture (H, W, 3), or opaque bytes (N,), and what controls are shown."""
    seen: Thumbnail | None
    """None if nobody asked, or there is no image."""
    seconds: float
    shown: int | None = None
    """With `seen`: the digest of what controls are shown."""


class Coder:
    """Decodes and encodes with threads of `executor`. For one event loop."""

    def __init__(
        self, executor: Executor, events: Events, clock: Callable[[], float], traces: FrameTraces
    ) -> None:
        self._executor, self._events, self._clock, self._traces = executor, events, clock, traces

    async def decode(self, waiting: Waiting, width: int, height: int, *, look: bool) -> Decoded:
        """The pixels, those of controls that act among them, and with `look` a thumbnail. Raises BadImage."""
        self._traces.taken(waiting.receipt.place)
        decoded = await self._decode(waiting, width, height, look=look)
        self._traces.decoded(waiting.receipt.place)
        return decoded

    async def _decode(self, waiting: Waiting, width: int, height: int, *, look: bool) -> Decoded:
        frame = waiting.frame
        if frame.format is ImageFormat.OPAQUE:
            return Decoded({PICTURE: np.frombuffer(frame.image, np.uint8)}, None, 0.0)
        planes, seconds = await self._timed(Coding.DECODE, partial(_decoded, waiting, width, height))
        if not look:
            return Decoded(planes, None, seconds)
        seen, shown = await self._in_thread(lambda: (thumbnail(planes[PICTURE]), waiting.shown_digest))
        return Decoded(planes, seen, seconds, shown)

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


def _decoded(waiting: Waiting, width: int, height: int) -> dict[str, NDArray[np.uint8]]:
    frame = waiting.frame
    planes = {PICTURE: decode_image(frame.image, frame.format, width, height)}
    for one in waiting.frame.controls:
        planes[control_plane(one.name)] = _decoded_control(one, width, height)
    return planes


def _decoded_control(sent: ControlIn, width: int, height: int) -> NDArray[np.uint8]:
    assert sent.format is not None, "it was not checked"
    try:
        return decode_image(sent.image, sent.format, width, height)
    except BadImage as error:
        is_size = error.reason is DropReason.IMAGE_SIZE_MISMATCH
        raise BadImage(DropReason.CONTROL_SIZE_MISMATCH if is_size else DropReason.CONTROL_INVALID) from None
