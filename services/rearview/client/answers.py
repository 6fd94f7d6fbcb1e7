"""What a session gives to its user: frozen dataclasses, no protobuf.

    Answer ─┬─ Translated      a picture              ┐ exactly one of these for every frame sent,
            ├─ Dropped         why there is none      ┘ in the order of sending
            ├─ ControlApplied  the answer to `Session.control`
            └─ Notice          something to know; the session goes on

Times are seconds as float. Images are `uint8` arrays of shape (height, width, 3), R, G, B.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from rearview.contract.memories import CacheSettings
from rearview.contract.methods import Method
from rearview.contract.settings import Settings
from rearview.contract.size import Size
from rearview.contract.stream import Continuity, ImageFormat, NoticeKind
from rearview.errors import DropReason, Reason

__all__ = [
    "Answer",
    "ControlApplied",
    "Dropped",
    "Image",
    "Notice",
    "Opened",
    "SpanTiming",
    "Timings",
    "Translated",
]

Image = NDArray[np.uint8]
"""(height, width, 3), R, G, B."""


@dataclass(frozen=True)
class Opened:
    """An open session."""

    session_id: str
    model: str
    width: int
    """Pixels of the frames that were to follow, until a control changed that."""
    height: int
    settings: Settings
    """The settings in use. `Settings.as_change` makes of them what can be sent."""
    idle_timeout_s: float
    resume_grace_s: float
    continuity: Continuity
    advice: str
    """Something that the user should be told, or empty."""
    method: Method | None = None
    """The method in use; None if the server does not say."""
    temporal_cache: CacheSettings | None = None
    """With Method.LIVE2DIFF: how the cache is kept."""
    warm_up_frames: int = 1
    """Frames that are received before the first of them is answered."""
    resume_token: str = field(repr=False, default="")

    def size_after(self, controls: Size) -> Size:
        """Of a frame after controls that name this size, or nothing of it."""
        return Size(controls.width or self.width, controls.height or self.height)


@dataclass(frozen=True)
class SpanTiming:
    """A frame's time in one span, seconds."""

    span: str
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class Timings:
    """Where a frame's time went on the server, seconds."""

    total_s: float = 0.0
    admission_s: float = 0.0
    codec_s: float = 0.0
    spans: tuple[SpanTiming, ...] = ()


@dataclass(frozen=True)
class Translated:
    """A translated frame."""

    frame_index: int
    presentation_s: float
    format: ImageFormat
    data: bytes = field(repr=False)
    """The picture as it came: JPEG, or rows of R, G, B."""
    width: int
    """Pixels."""
    height: int
    timings: Timings
    round_trip_s: float
    """From hand-over to gRPC to receipt, on the client's clock; includes any reconnection."""

    @cached_property
    def image(self) -> Image:
        """The picture, (height, width, 3) uint8, decoded on first use.

        Raises ValueError for an opaque payload.
        """
        if self.format is ImageFormat.OPAQUE:
            raise ValueError("an opaque answer has no image: read `data`")
        if self.format is ImageFormat.RGB:
            return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)
        image: Image = simplejpeg.decode_jpeg(self.data, colorspace="RGB")
        return image


@dataclass(frozen=True)
class Dropped:
    """A frame that was not translated."""

    frame_index: int
    reason: DropReason
    timings: Timings
    round_trip_s: float


@dataclass(frozen=True)
class ControlApplied:
    """The answer to a control, in its place among the frames."""

    control_id: int
    settings: Settings
    """The settings in use after it."""
    rejected_reason: Reason | None
    """None if applied; else why nothing was changed."""
    advice: str
    received_frames: int
    """How many frames of the session came before it: the next is the first under the new settings."""


@dataclass(frozen=True)
class Notice:
    """Something to know; the client acts on it by itself."""

    kind: NoticeKind
    grace_s: float
    continuity: Continuity | None
    gap_frames: int = 0
    """Of NoticeKind.RESIZED: frames between the last picture of the old size and the first one of the new
    size that have none, those apart that were left out as unchanged.
    """


Answer = Translated | Dropped | ControlApplied | Notice
