"""A frame on its way: the one carrier from ingress to ingress, over every link and through every engine.

It has three numbers. Its *place* counts the frames that the session has received, drops and unusable ones
included; `frame_index` is the client's own number; its *ordinal* counts the frames that were admitted. With
all three on every hop, whoever holds the first and the last span's frames can rebuild what the ingress knew.
What a frame carries is a set of named planes: torch tensors inside an engine, numpy arrays on links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = [
    "ANCHOR",
    "ANSWER",
    "ANSWER_SIZE",
    "CONTROL",
    "DEPTH",
    "HINT",
    "LATENT",
    "NO_PLACE",
    "PICTURE",
    "UNSEEN",
    "Forward",
    "Frame",
    "Timing",
    "control_plane",
    "hint_plane",
    "is_for_controls",
]

PICTURE = "picture"
"""(H, W, 3) uint8; with the null model opaque bytes (N,)."""
LATENT = "latent"
"""(C, h, w), float32 (float64 where the networks are): the encoded frame, a noisy latent between two
denoising steps, or the clean one after the last."""
DEPTH = "depth"
"""(C, h, w): the latent of the frame's depth map, the same in every step."""
ANCHOR = "anchor"
"""(C, h, w): the clean latent that guidance gets away from."""
CONTROL = "control."
"""Begins names of planes (H, W, 3) uint8, one for each control: what it is shown, the same in every step. A
control of which a frame has no plane does not act on it."""
HINT = "hint."
"""Begins names of planes (C, h, w), one for each control: what the ControlNet has made of its picture. They
never leave a span, which makes them again."""

ANSWER = "answer"
"""(N,) uint8: the picture, encoded as its client gets it."""
ANSWER_SIZE = "size"
"""(2,) float32: width and height of that picture, pixels."""

NO_PLACE = -1
"""Place of a frame that no client has sent: it fills a warm-up."""
UNSEEN = -2
"""Place of a frame that is sent again, to another lane, though its client has the picture: what it leaves in
memory counts, and nobody takes what comes of it."""

T = TypeVar("T")
U = TypeVar("U")


def control_plane(name: str) -> str:
    """Name of the plane with what that control is shown."""
    return CONTROL + name


def hint_plane(name: str) -> str:
    """Name of the plane with what that control's network has made of its picture."""
    return HINT + name


def is_for_controls(plane: str) -> bool:
    """Whether a plane of that name is one of these two."""
    return plane.startswith((CONTROL, HINT))


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward that a traced frame was part of."""

    operator: str
    """Its name: `encode`, `denoise-0`, …"""
    start_s: float
    """Since the frame came to the span."""
    seconds: float
    rows: int
    """In the batch."""


@dataclass(slots=True)
class Timing:
    """A frame's time in one span, seconds. A value, as a frame is."""

    span: str
    """Name of the span."""
    queue_s: float
    """Waiting for its turn."""
    compute_s: float
    """In the networks, the rest of its batches included."""
    device_s: float = 0.0
    """Its share of that time, by its samples among those of each batch."""
    arrived_s: float = 0.0
    """When it came, of a traced frame: on the monotonic clock of the process that holds it until it has left
    that, then on the wall clock of that machine."""
    forwards: tuple[Forward, ...] = ()
    """Of a traced frame, in their order."""


@dataclass(slots=True)
class Frame(Generic[T]):
    """One frame between two operators. A value, which nobody changes: it is not `frozen` because one is built
    four times in each span, and that takes five times as long.
    """

    session_id: str
    """32 hex digits."""
    ordinal: int
    """Its number among the admitted frames of its session, from 0: memory, noise and order go by it."""
    planes: Mapping[str, T] | None
    """What it carries, by name. None: it was lost, and its ordinal is resolved."""
    settings_version: int = 0
    deadline_s: float = float("inf")
    """On the monotonic clock of the process that holds it; links carry what is left until then."""
    place: int = NO_PLACE
    """Its number among the frames that the session has received, from 0."""
    frame_index: int = 0
    """The client's number for it, echoed in its answer."""
    epoch: int = 0
    """That of the owner who sent it: receivers refuse an older one than they know."""
    timings: tuple[Timing, ...] = ()
    """Of the spans that it has left, in their order."""
    trace_id: bytes = b""
    """16 bytes if the frame is traced, else none."""
    presentation_offset: tuple[int, int] = (0, 0)
    """The client's time of it, seconds and nanoseconds, echoed in its answer."""

    @property
    def is_lost(self) -> bool:
        return self.planes is None

    def left(self, planes: Mapping[str, T] | None, timing: Timing) -> Frame[T]:
        """The frame as it leaves a span with these planes."""
        return self.carrying(planes, timings=(*self.timings, timing))

    def carrying(
        self,
        planes: Mapping[str, U] | None,
        *,
        epoch: int | None = None,
        timings: tuple[Timing, ...] | None = None,
    ) -> Frame[U]:
        """The frame with other planes, and what else is given. Several times for each frame in each span, so
        it is written out: `replace` takes five times as long.
        """
        return Frame(
            self.session_id,
            self.ordinal,
            planes,
            self.settings_version,
            self.deadline_s,
            self.place,
            self.frame_index,
            self.epoch if epoch is None else epoch,
            self.timings if timings is None else timings,
            self.trace_id,
            self.presentation_offset,
        )
