"""The ordinals of a session's admitted frames, and of the fillers between them.

A temporal cache warms up on W frames that wait for each other. Where the client will not send them in time,
*fillers* take their ordinals: copies of a picture whose answers nobody waits for. This decides how many are
needed and which numbers they get; the feed sends them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rearview.contract.settings import Settings
from rearview.contract.warmup import LaneWarmUp

__all__ = ["Numbers", "Ordinals"]


@dataclass(frozen=True, slots=True)
class Numbers:
    """The ordinals that come with one admitted frame."""

    completing: range
    """Of fillers that complete the window before it: they repeat the frame before."""
    fillers: range
    """Of fillers that precede it and show its own picture."""
    ordinal: int
    """Its own."""
    warms_up: bool
    """Whether it waits for other frames, so that its age is not the service's."""

    @property
    def first(self) -> int:
        """The first ordinal under the frame's settings."""
        return self.fillers.start if self.fillers else self.ordinal


class Ordinals:
    """Gives each admitted frame of one session its number, and knows which are in the lane."""

    def __init__(self, warm_up: LaneWarmUp, next_ordinal: int = 0, in_lane: Iterable[int] = ()) -> None:
        """`in_lane`: ordinals of frames, fillers apart, that have not come back."""
        self._warm_up = warm_up
        self._next = next_ordinal
        self._in_lane = set(in_lane)

    def admit(self, settings: Settings) -> Numbers:
        """Numbers for a frame under `settings`."""
        completing = self.complete() if self._warm_up.is_reset_by(settings) else self._take(0)
        fillers = self._take(self._warm_up.enter(self._next, settings))
        ordinal = self._take(1).start
        self._in_lane.add(ordinal)
        return Numbers(completing, fillers, ordinal, self._warm_up.holds(ordinal))

    def complete(self) -> range:
        """Numbers for what the window still waits for, if a frame in the lane waits with it."""
        waits = any(map(self._warm_up.holds, self._in_lane))
        return self._take(self.missing if waits else 0)

    def came_back(self, ordinal: int, *, lost: bool) -> bool:
        """The ordinal has left the lane, `lost` without a picture. Whether a frame's answer waits for it."""
        self._warm_up.came_back(ordinal, lost=lost)
        if ordinal not in self._in_lane:
            return False  # A filler's, or sent a second time.
        self._in_lane.discard(ordinal)
        return True

    @property
    def next(self) -> int:
        """The ordinal that is given next."""
        return self._next

    @property
    def missing(self) -> int:
        """Ordinals that the window still waits for."""
        return self._warm_up.missing(self._next)

    @property
    def in_lane(self) -> int:
        """How many frames, fillers apart, have not come back."""
        return len(self._in_lane)

    @property
    def starves(self) -> bool:
        """Whether all that is in the lane waits for ordinals that are not given."""
        return self.missing > 0 and all(map(self._warm_up.holds, self._in_lane))

    @property
    def may_repeat(self) -> bool:
        """Whether fillers may yet have to repeat the last frame."""
        return not self._warm_up.is_over

    def _take(self, count: int) -> range:
        first, self._next = self._next, self._next + count
        return range(first, self._next)
