"""Slots, positions and visibility of a temporal cache: all follow from one integer.

A cache keeps W sink frames, those that warmed it up, for ever, and the last R streamed ones in a ring.
n is the number of streamed frames that it has been given since the warm-up, so the n-th (from 0) is the
one that comes next. Methods 3.6, for any W and R.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CacheWindow"]


@dataclass(frozen=True, slots=True)
class CacheWindow:
    """How many frames a frame sees: W sinks and R newest ones, itself among them."""

    sink_frames: int = 8
    """W, frames of a warm-up."""
    ring_frames: int = 8
    """R."""

    def __post_init__(self) -> None:
        if self.sink_frames < 1 or self.ring_frames < 1:
            raise ValueError(f"a window needs sinks and a ring: {self}")

    @property
    def frames(self) -> int:
        """L = W + R, slots and positions."""
        return self.sink_frames + self.ring_frames

    def slot(self, n: int) -> int:
        """Where the n-th streamed frame is written."""
        return self.sink_frames + n % self.ring_frames

    def position(self, n: int) -> int:
        """That of the n-th streamed frame itself: once the ring is full, always the last one."""
        return min(self.sink_frames + n, self.frames - 1)

    def positions(self, n: int) -> tuple[int, ...]:
        """Of every slot as the n-th streamed frame sees it. A slot that is empty counts as at its own."""
        full = n >= self.ring_frames - 1
        ring = (
            self.frames - 1 - (n - place) % self.ring_frames if full else self.sink_frames + place
            for place in range(self.ring_frames)
        )
        return *range(self.sink_frames), *ring

    def visible(self, n: int) -> tuple[bool, ...]:
        """Which slots the n-th streamed frame sees before it is written: the one it will take is past."""
        filled = self.filled(n)
        return tuple(slot < filled and slot != self.slot(n) for slot in range(self.frames))

    def filled(self, n: int) -> int:
        """Slots that hold a frame after n streamed ones: always the first ones."""
        return min(self.sink_frames + n, self.frames)
