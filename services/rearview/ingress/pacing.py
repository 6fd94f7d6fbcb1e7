"""Which frame of a session starts next, which are dropped, and how many the client may send.

Pure: `now` is an argument (monotonic seconds of the ingress). The pacer knows frames only as objects
that it hands back. Every frame offered comes out exactly once, from `take` or among the dropped.

Credit is cumulative and bounds everything here: `offer` refuses a frame beyond it, so at most `window`
frames are held. What surprises: with `latest` the window is larger than the places. A superseded frame
returns its credit at once, yet its answer, which carries the credit, waits for the frames before it; and
frames on the wire hold credit too. `WIRE_SLACK_FRAMES` is for those: without it a live client would
stand still for a round trip after every burst. With `lossless` and `deadline` the window is the number
of places, so that a queue never overflows.

Frames that warm a temporal cache up wait for each other in the lane. The next `warm_up` frames to start
are exempt from dropping, and until they have started there are places in flight for all of them, whatever
else is in flight.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from rearview.contract.stream import DropPolicy
from rearview.errors import DropReason, Reason, Refused

__all__ = ["WIRE_SLACK_FRAMES", "Pacer", "PacerCounts"]

WIRE_SLACK_FRAMES = 8
"""Frames that may be on the wire with `latest`: a round trip of 250 ms at 30 FPS."""

FrameT = TypeVar("FrameT")


@dataclass(frozen=True, slots=True)
class PacerCounts:
    """What a pacer has counted since its session opened."""

    received: int = 0
    granted: int = 0
    """Frames that the client was told it may send."""


NO_COUNTS = PacerCounts()


class Pacer(Generic[FrameT]):
    """The frames of one session that wait, and the count of those in flight."""

    def __init__(
        self,
        policy: DropPolicy,
        max_in_flight: int,
        max_waiting: int,
        budget_s: float = 0.5,
        counts: PacerCounts = NO_COUNTS,
        in_flight: int = 0,
    ) -> None:
        """`max_waiting` does not count with LATEST (one place); `budget_s` counts with DEADLINE only.

        A pacer that goes on for another has its `counts`. Of the frames that have come then so many are
        `in_flight`, and all others are answered, here or by somebody else.
        """
        assert max_in_flight >= 1, f"max_in_flight {max_in_flight} < 1"
        assert max_waiting >= 1, f"max_waiting {max_waiting} < 1"
        self._policy = policy
        self._max_in_flight = max_in_flight
        self._budget_s = budget_s
        latest = policy is DropPolicy.LATEST
        self._places = 1 + WIRE_SLACK_FRAMES if latest else max_waiting
        """Frames beside those in flight that the client has credit for."""
        self._exempt = 0
        """The next frames to start that are not dropped: they warm up."""
        self._together = 0
        """Places in flight that the warm-up needs."""
        self._granted = counts.granted
        self._waiting: deque[tuple[FrameT, float]] = deque()  # with the time of arrival
        self._in_flight = in_flight
        self._received = counts.received
        self._answered = counts.received - in_flight

    def warm_up(self, frames: int, together: int) -> None:
        """The next `frames` frames to start are part of a warm-up of `together` frames, 0 of none."""
        assert 0 <= frames <= together, f"{frames} frames of a warm-up of {together}"
        self._exempt, self._together = frames, together

    def offer(self, frame: FrameT, now: float) -> list[tuple[FrameT, DropReason]]:
        """A frame has come. Returns the frames that it drives out, oldest first.

        Raises Refused(CREDIT_EXCEEDED), and takes nothing, if the client had no credit for it.
        """
        self._count_received()
        self._waiting.append((frame, now))
        dropped = self._expired(now)
        if self._policy is DropPolicy.LATEST:
            places = self._exempt + max(1, self._max_in_flight - self._in_flight - self._exempt)
            while len(self._waiting) > places:
                dropped.append((self._pop(self._exempt), DropReason.SUPERSEDED))
        self._answered += len(dropped)
        return dropped

    def rejected(self) -> None:
        """A frame has come and was answered at the gate (bad image, rate): it only uses credit.

        Raises Refused(CREDIT_EXCEEDED) as `offer` does.
        """
        self._count_received()
        self._answered += 1

    def take(self, now: float) -> tuple[FrameT | None, list[tuple[FrameT, DropReason]]]:
        """The next frame to start, None if there is none or no place in flight; and frames now too old.

        A frame that is returned is in flight until `finished`.
        """
        dropped = self._expired(now)
        self._answered += len(dropped)
        if not self._waiting or self._in_flight >= self._limit:
            return None, dropped
        self._in_flight += 1
        self._exempt = max(0, self._exempt - 1)
        return self._waiting.popleft()[0], dropped

    def finished(self) -> None:
        """A frame in flight has its outcome, whatever it is: its place is free."""
        assert self._in_flight > 0, "finished without a frame in flight"
        self._in_flight -= 1
        self._answered += 1

    def is_late(self, arrival_s: float, now: float) -> bool:
        """Whether the picture of a frame that came at `arrival_s` is now worthless (DEADLINE only)."""
        return self._policy is DropPolicy.DEADLINE and now - arrival_s > self._budget_s

    def credit(self) -> int:
        """How many frames the client may have sent in all since the session opened. Never falls."""
        self._granted = max(self._granted, self._answered + self._limit + self._places)
        return self._granted

    def received(self) -> int:
        """How many frames have come, those of `rejected` included."""
        return self._received

    @property
    def counts(self) -> PacerCounts:
        """With which another pacer goes on."""
        return PacerCounts(self._received, self.credit())

    def in_flight(self) -> int:
        """How many frames are taken and not finished."""
        return self._in_flight

    def waiting(self) -> int:
        """How many frames wait."""
        return len(self._waiting)

    def _count_received(self) -> None:
        if self._received >= self.credit():
            raise Refused(
                Reason.CREDIT_EXCEEDED,
                "more frames were sent than `frame_credit` allows",
                metadata={"frame_credit": str(self.credit())},
            )
        self._received += 1

    def _expired(self, now: float) -> list[tuple[FrameT, DropReason]]:
        dropped = []
        first = self._exempt
        while len(self._waiting) > first and self.is_late(self._waiting[first][1], now):
            dropped.append((self._pop(first), DropReason.LATE))
        return dropped

    @property
    def _limit(self) -> int:
        """Places in flight: during a warm-up as many more as it has frames, so that it waits for none of
        those before it, which may wait for it.
        """
        return self._max_in_flight + self._together if self._exempt else self._max_in_flight

    def _pop(self, place: int) -> FrameT:
        frame, _ = self._waiting[place]
        del self._waiting[place]
        return frame
