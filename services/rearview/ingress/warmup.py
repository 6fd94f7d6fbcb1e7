"""Which ordinals of a session warm its temporal cache up together, as far as the ingress must know it.

The engine holds the first W frames of a warm-up until all of them are there. Only the ingress knows that
no more will come, or that the first picture is wanted at once; then it sends *fillers*: the same picture
under ordinals of its own, whose answers nobody waits for. Pure. It agrees with the engine's own plan
(`engine/warmup.py`) because both follow from ordinals, settings and lost frames. What surprises: a window
of which every frame was lost is followed by another one, and a window that a reset cuts short is completed
too. The engine could do without, but a later span would learn of the reset only from its first frame,
which an earlier span holds back until its own window is whole.
"""

from __future__ import annotations

from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.rewarm import rewarms
from rearview.contract.settings import Settings

__all__ = ["WarmUp"]


class WarmUp:
    """The warm-ups of one session. A session without a cache has none."""

    def __init__(
        self, frames: int, cache: CacheSettings | None, settings: Settings, *, instant: bool
    ) -> None:
        """`frames`: W, as the deployment has it. `settings`: version 0."""
        self._cache, self._settings = cache, settings
        self._frames = frames if cache is not None else 0
        self._instant = instant
        self._start = 0
        """First ordinal of the window that is under way, or was last."""
        self._lost: set[int] = set()
        """Ordinals from it on that have come back without a picture, until one comes back with one."""
        self._is_warm = False
        """Whether a picture of the window has come back."""

    @property
    def frames(self) -> int:
        """W; 0: there is no warm-up."""
        return self._frames

    @property
    def is_over(self) -> bool:
        """Whether no frame waits, or will have to wait, for others before the next reset."""
        return self._is_warm or not self._frames

    def missing(self, next_ordinal: int) -> int:
        """Ordinals, from `next_ordinal` on, that the window still waits for."""
        return 0 if self._is_warm else max(0, self._start + self._frames - next_ordinal)

    def holds(self, ordinal: int) -> bool:
        """Whether the ordinal is in the window that was last."""
        return self._start <= ordinal < self._start + self._frames

    def is_reset_by(self, settings: Settings) -> bool:
        """Whether a frame under `settings` begins another window if it comes next."""
        if self._cache is None:
            return False
        return Rewarm.RESET in rewarms(self._settings, settings, self._cache)

    def enter(self, ordinal: int, settings: Settings) -> int:
        """The next frame is about to get `ordinal` under `settings`; returns the fillers to send before it:
        the frame then has the ordinal after theirs.
        """
        if ordinal and self.is_reset_by(settings):
            self._begin(ordinal)
        self._settings = settings
        return max(0, self.missing(ordinal) - 1) if self._instant else 0

    def came_back(self, ordinal: int, *, lost: bool) -> None:
        """The ordinal has left the lane, `lost` without a picture."""
        if self._is_warm or ordinal < self._start:
            return
        if not lost:
            self._is_warm = self.holds(ordinal)
            return
        self._lost.add(ordinal)
        while self._frames and self._lost.issuperset(range(self._start, self._start + self._frames)):
            self._begin(self._start + self._frames)

    def _begin(self, start: int) -> None:
        """Another window, from ordinal `start` on."""
        self._start, self._is_warm = start, False
        self._lost = {ordinal for ordinal in self._lost if ordinal >= start}
