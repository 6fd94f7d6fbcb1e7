"""What load to make: when each frame of each stream is due. Pure; the generator keeps to it.

Open loop: frames are due on a clock of their own, whatever the server does, so a slow server cannot slow
the question that it is asked. Closed loop: the next frame is due when an earlier one was answered; that
is for latency without queueing and for the highest throughput, never for latency under load.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from rearview.contract.stream import DropPolicy

__all__ = ["Arrival", "ClosedLoop", "LoadPlan", "OpenLoop", "stream_starts"]


class Arrival(Enum):
    """When streams start."""

    SPREAD = "spread"
    """At once, their frames spread evenly over one frame interval."""
    POISSON = "poisson"
    """At random, `arrival_rate` streams per second on average."""
    TOGETHER = "together"
    """All at the same instant: the worst phase."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Frames on a fixed schedule."""

    fps: float
    seconds: float

    @property
    def frames(self) -> int:
        """Frames of one stream."""
        return max(1, round(self.fps * self.seconds))

    def due_offset_s(self, frame: int) -> float:
        """When a frame is due, seconds after its stream's start."""
        return frame / self.fps


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """At most `in_flight` unanswered frames; the next is due when there is room and credit."""

    frames: int
    in_flight: int = 1


@dataclass(frozen=True)
class LoadPlan:
    """One run against one server."""

    target: str
    """host:port, without TLS."""
    pace: OpenLoop | ClosedLoop
    streams: int = 1
    policy: DropPolicy = DropPolicy.LATEST
    """It also says what becomes of a frame without credit. LATEST: it is not sent and counts as `no_credit`.
    LOSSLESS: it is sent when credit comes, and its latency counts from when it was due. DEADLINE: it waits
    for at most the frame budget, then it counts as `expired`."""
    frame_budget_s: float = 0.5
    """For DEADLINE: the age at which a frame is worthless."""
    warmup_frames: int = 0
    """First frames of every stream that are checked but not measured."""
    arrival: Arrival = Arrival.SPREAD
    arrival_rate: float = 1.0
    """POISSON: streams per second."""
    seed: int = 0
    width: int = 256
    height: int = 256
    prompt: str = "a painting"
    strength: float | None = None
    """None: the model's default."""
    steps: int | None = None
    """None: the model's default."""
    jpeg_quality: int = 85
    token: str = field(default="", repr=False)
    """Bearer token; empty: none is sent."""
    ack_every: int = 8
    """After so many answers the client confirms them, so that the server may forget them."""
    open_timeout_s: float = 30.0
    """A stream whose `opened` does not come within this has failed."""
    drain_timeout_s: float = 60.0
    """How long after the last frame answers may come; what is missing then counts as missing."""


def stream_starts(plan: LoadPlan) -> list[float]:
    """Seconds after the run's start at which each stream's first frame is due."""
    if plan.arrival is Arrival.TOGETHER:
        return [0.0] * plan.streams
    if plan.arrival is Arrival.POISSON:
        source, at_s, starts = random.Random(plan.seed), 0.0, []
        for _ in range(plan.streams):
            at_s += source.expovariate(plan.arrival_rate)
            starts.append(at_s)
        return starts
    interval_s = 1.0 / plan.pace.fps if isinstance(plan.pace, OpenLoop) else 0.0
    return [interval_s * stream / plan.streams for stream in range(plan.streams)]
