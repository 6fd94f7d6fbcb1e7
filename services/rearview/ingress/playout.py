"""What a viewer sees of a stream: the continuous play ratio, frame by frame.

The viewer shows the first picture `BUFFER_S` after it is there, and each later one as long after the one
before as its frame came after the frame before. That time counts as played if the picture is there when it is
due. If it is late, all the time until it is shown has stalled, and it is shown as the first one was. A frame
without a picture is a stall of its interval, unless it was left out for looking like the one before. Where
the source pauses nothing is due.
"""

from __future__ import annotations

__all__ = ["BUFFER_S", "MAX_INTERVAL_S", "Playout"]

BUFFER_S = 0.1
"""What the viewer waits beyond the first picture, and beyond one that came too late."""
MAX_INTERVAL_S = 1.0
"""Between two frames of a stream; beyond it the source has paused."""


class Playout:
    """One session's viewer. Seconds on one monotonic clock, the caller's."""

    def __init__(self) -> None:
        self._received_s: float | None = None
        """Of the last frame."""
        self._due_s: float | None = None
        """When it was to be shown. None: no picture was there yet, or the source has paused."""

    def answered(self, received_s: float, answered_s: float, *, shows: bool) -> tuple[float, float]:
        """The next answer in order could be sent; returns seconds played and seconds stalled since the one
        before. `shows`: whether the viewer has what is to be shown.
        """
        before_s, self._received_s = self._received_s, received_s
        interval_s = 0.0 if before_s is None else received_s - before_s
        if self._due_s is None or interval_s > MAX_INTERVAL_S:
            self._due_s = answered_s + BUFFER_S if shows else None
            return 0.0, 0.0
        self._due_s += interval_s
        if not shows:
            return 0.0, interval_s
        late_s = answered_s - self._due_s
        if late_s <= 0:
            return interval_s, 0.0
        self._due_s = answered_s + BUFFER_S
        return 0.0, interval_s + late_s + BUFFER_S
