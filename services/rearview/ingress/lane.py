"""A session's lane: what is written into it, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from rearview.contract.frame import Frame
from rearview.contract.settings import Settings
from rearview.transport.codec import FrameCodec
from rearview.transport.links import Link
from rearview.transport.wire import (
    Ack,
    Kind,
    Note,
    encode_ack,
    encode_json,
    encode_note,
    encode_settings,
)

__all__ = ["Lane", "LaneSender", "Returning"]


Dropped: TypeAlias = Sequence[tuple[int, int, int]]


@dataclass(slots=True)
class Returning:
    """What comes back over a lane, from when its replicas are asked."""

    codec: FrameCodec
    source: Link | None = None
    """The link that the last picture came over; the last span has made it."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A session's replicas, one per span, the link to each, and how its frames are written."""

    session_id: str
    epoch: int
    replicas: tuple[str, ...]
    links: tuple[Link, ...]
    returning: Returning
    addresses: tuple[str, ...]
    """Of the replicas."""
    kernels: tuple[str, ...] = ()
    """What their networks compute with: lanes that say the same give equal bits."""

    @property
    def codec(self) -> FrameCodec:
        """How its frames are written."""
        return self.returning.codec


class LaneSender:
    """Writes into lanes."""

    def send_frame(self, lane: Lane, frame: Frame[NDArray[Any]]) -> int:
        """Send a frame to the first span; returns its bytes. Raises LinkClosed."""
        parts = lane.codec.encode(frame, time.monotonic())
        lane.links[0].send(Kind.FRAME, *parts)
        return sum(len(part) for part in parts)

    def send_settings(self, lane: Lane, version: int, settings: Settings) -> None:
        """Announce settings to the first span, before the first frame under them. Raises LinkClosed."""
        content = {
            "session_id": lane.session_id,
            "epoch": lane.epoch,
            "version": version,
            "settings": encode_settings(settings),
        }
        lane.links[0].send(Kind.SETTINGS, encode_json(content))

    def send_note(self, lane: Lane, begins: int, text: str) -> None:
        """Leave a note at the first span. Raises LinkClosed. Links of version 1 know no notes."""
        if lane.links[0].knows(Kind.NOTE):
            lane.links[0].send(Kind.NOTE, encode_note(Note(lane.session_id, lane.epoch, begins, text)))

    def tell_dropped(self, lane: Lane, frames: Dropped) -> None:
        """Tell the first span of frames that never come: of each its place, the client's number, and why.
        Raises LinkClosed. Links of version 1 know no such word.
        """
        if lane.links[0].knows(Kind.DROPPED):
            content = {"session_id": lane.session_id, "epoch": lane.epoch, "frames": frames}
            lane.links[0].send(Kind.DROPPED, encode_json(content))

    def acknowledge(self, lane: Lane, ordinal: int) -> None:
        """Pictures up to `ordinal` will not be asked for again: the last span may let go of them. Raises
        LinkClosed. Links of version 1 know no such word.
        """
        source = lane.returning.source
        if source is not None and source.knows(Kind.ACK):
            source.send(Kind.ACK, encode_ack(Ack(lane.session_id, lane.epoch, ordinal)))

    def leave_answer(self, lane: Lane, frame: Frame[NDArray[Any]]) -> None:
        """The last span is to keep this of a frame that came back. Raises LinkClosed. Lanes of version 1 keep
        pictures as they were made, and name no places.
        """
        if lane.codec.version > 1:
            lane.links[-1].send(Kind.ANSWER, *lane.codec.encode(frame, time.monotonic()))
