"""Slots, positions and visibility of a temporal cache: all follow from one integer.

A cache keeps W sink frames, those that warmed it up, for ever, and the last R streamed ones in a ring.
n is the number of streamed frames that it has been given since the warm-up, so the n-th (from 0) is the
one that comes next. Methods 3.6, for any W and R.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
        return _positions(self, self._phase(n))

    def visible(self, n: int) -> tuple[bool, ...]:
        """Which slots the n-th streamed frame sees before it is written: the one it will take is past."""
        return _visible(self, self._phase(n))

    def filled(self, n: int) -> int:
        """Slots that hold a frame after n streamed ones: always the first ones."""
        return min(self.sink_frames + n, self.frames)

    def _phase(self, n: int) -> int:
        """A smaller number that stands for n: once the ring is full, all comes round again."""
        return n if n < self.ring_frames else self.ring_frames + n % self.ring_frames


@lru_cache(maxsize=256)
def _positions(window: CacheWindow, n: int) -> tuple[int, ...]:
    full = n >= window.ring_frames - 1
    ring = (
        window.frames - 1 - (n - place) % window.ring_frames if full else window.sink_frames + place
        for place in range(window.ring_frames)
    )
    return *range(window.sink_frames), *ring


@lru_cache(maxsize=256)
def _visible(window: CacheWindow, n: int) -> tuple[bool, ...]:
    filled, own = window.filled(n), window.slot(n)
    return tuple(slot < filled and slot != own for slot in range(window.frames))
