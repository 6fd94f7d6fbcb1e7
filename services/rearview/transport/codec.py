"""How the frames of a lane are written: a lane has one version, the least of its owner's links.

Two processes speak the versions of this release and of those before, so that a service can be upgraded
replica by replica. A link agrees on the newest that both ends know; the owner of a lane takes the least of
its links' versions and says it when it opens the session, and every hop of the lane obeys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from rearview.contract.frame import Frame
from rearview.transport.wire import Body, decode_frame, encode_frame
from rearview.transport.wire_v1 import decode_frame_v1, encode_frame_v1

__all__ = ["SPOKEN", "FrameCodec", "Versions"]


class Versions(NamedTuple):
    """The versions that a process speaks: these and those between."""

    oldest: int
    newest: int

    def common(self, other: Versions) -> int | None:
        """The newest one that both speak; None if there is none."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None

    def __contains__(self, version: object) -> bool:
        return isinstance(version, int) and self.oldest <= version <= self.newest

    def __str__(self) -> str:
        return str(self.newest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


SPOKEN = Versions(1, 3)
"""From 2 on frames are written alike. Since 3 replicas tell their room, and are asked how sessions stand."""


@dataclass(frozen=True, slots=True)
class FrameCodec:
    """Writes and reads the frames of one lane."""

    version: int
    spans: Sequence[str]
    """Names of the topology's spans, in order."""
    has_depth: bool = False
    """Whether the session's frames carry their depth between encode and the last step."""

    def encode(self, frame: Frame[NDArray[Any]], now: float) -> Sequence[bytes | memoryview]:
        """The body in parts. `now`: on the clock of the frame's deadline. In version 1 the frame loses its
        place, its index and its trace.
        """
        if self.version == 1:
            return encode_frame_v1(frame, now, self.spans)
        return encode_frame(frame, now)

    def decode(self, body: Body, now: float) -> Frame[NDArray[Any]]:
        """Undo `encode`; planes are views of `body`. Raises WireError."""
        if self.version == 1:
            return decode_frame_v1(body, now, self.spans, has_depth=self.has_depth)
        return decode_frame(body, now)
