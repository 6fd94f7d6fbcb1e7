"""Answers that an ingress leaves with a session's replicas, for the ingress that may come after it.

The last span keeps what it has made until the client has it. It has pixels, of which few fit; so of a client
that lacks many pictures it gets the rest as they were encoded, which is less by a factor of ten to fifty. A
client that acknowledges soon causes no such message. And a lane that a session is moved to has made nothing
of what its client still lacks: it gets that too. Frames that are dropped before they enter the lane are told
to its first span, with the reason, before the drop is counted or sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rearview.contract.frame import ANSWER, ANSWER_SIZE, PICTURE, Frame
from rearview.contract.retained import PIXEL_BYTES, RETAINED_BYTES
from rearview.contract.size import NO_SIZE, Size
from rearview.errors import DropReason
from rearview.ingress.book import RETAINED_ANSWERS, Book
from rearview.ingress.feed import Feed
from rearview.ingress.intake import Dropped

__all__ = ["LeftAnswers", "size_of"]

NOTHING: Mapping[int, tuple[int, DropReason]] = MappingProxyType({})


class LeftAnswers:
    """Those of one session."""

    def __init__(
        self,
        feed: Feed,
        book: Book,
        pixel_bytes: int = PIXEL_BYTES,
        *,
        dropped: Mapping[int, tuple[int, DropReason]] = NOTHING,
    ) -> None:
        """`pixel_bytes`: of pictures that are encoded and stay as they are. `dropped`: what the lane was told
        by another ingress.
        """
        self._dropped = dict(dropped)
        """The last frames that never came, by place: the client's number, and why."""
        self._feed, self._book, self._pixel_bytes = feed, book, pixel_bytes
        self._pixels: dict[int, int] = {}
        """Bytes of the pictures that the last span has as pixels, by place, of those that are encoded."""

    def dropped(self, frames: Dropped) -> None:
        """These will not enter the lane, as is about to be known."""
        told = {place: (self._book.receipt(place).frame_index, reason) for place, reason in frames}
        self._feed.tell_dropped(told)
        self._dropped |= told
        while len(self._dropped) > 2 * RETAINED_ANSWERS:
            del self._dropped[min(self._dropped)]

    def why_dropped(self, place: int) -> DropReason | None:
        """What has become of a frame that comes again: another ingress dropped it, and those before it had
        no answer. None: nothing is known of it.
        """
        return self._dropped[place][1] if place in self._dropped else None

    def encoded(self, came: Frame[NDArray[Any]], image: bytes) -> None:
        """What a frame that has come back carries is `image` for its client."""
        pixels = (came.planes or {}).get(PICTURE)
        if pixels is None or came.place < 0 or not self._feed.is_current(came):
            return
        if len(image) < pixels.nbytes and not self._has_room(came.place, pixels.nbytes):
            self._feed.leave(came.carrying(_planes(image, size_of(came))))

    def came_again(self, frame: Frame[NDArray[Any]]) -> None:
        """A frame was run once more in another lane, and may be answered by now."""
        answer = self._book.find(frame.place)
        if answer is not None and isinstance(answer.outcome, bytes):
            self.encoded(frame, answer.outcome)

    def hand_over(self, start: int) -> None:
        """The session goes on in another lane, which makes nothing of what was before the ordinal `start`.
        It gets the newest of that, as far as there is room beside the pixels of what it will make.
        """
        self._feed.tell_dropped(self._dropped)
        room = RETAINED_BYTES - self._pixel_bytes
        for place, ordinal in reversed(self._feed.awaited):
            answer = self._book.find(place)
            if ordinal >= start or answer is None or not isinstance(answer.outcome, bytes):
                continue
            self._pixels.pop(place, None)
            if (room := room - len(answer.outcome)) < 0:
                return
            receipt = answer.receipt
            self._feed.leave(
                Frame(
                    self._feed.session_id,
                    ordinal,
                    _planes(answer.outcome, receipt.size),
                    place=place,
                    frame_index=receipt.frame_index,
                    presentation_offset=receipt.presentation_offset,
                    timings=answer.work.timings,
                )
            )

    def _has_room(self, place: int, num_bytes: int) -> bool:
        while self._pixels and (first := next(iter(self._pixels))) < self._book.first_kept:
            del self._pixels[first]
        if place in self._pixels:
            return True
        fits = sum(self._pixels.values()) + num_bytes <= self._pixel_bytes
        if fits:
            self._pixels[place] = num_bytes
        return fits


def size_of(frame: Frame[NDArray[Any]]) -> Size:
    """Of the picture that a frame has come back with, as far as it says so."""
    planes = frame.planes or {}
    if (told := planes.get(ANSWER_SIZE)) is not None:
        return Size(*map(int, told))
    picture = planes.get(PICTURE)
    return NO_SIZE if picture is None or picture.ndim != 3 else Size(picture.shape[1], picture.shape[0])


def _planes(image: bytes, size: Size) -> dict[str, NDArray[Any]]:
    return {ANSWER: np.frombuffer(image, np.uint8), ANSWER_SIZE: np.array(size, np.float32)}
