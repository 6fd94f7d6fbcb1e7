"""Which ordinals of a session warm its temporal cache up together, as far as the ingress must know it.

The engine holds the first W frames of a warm-up until all of them are there. Only the ingress knows that
no more will come, or that the first picture is wanted at once; then it sends *fillers*: the same picture
under ordinals of its own, whose answers nobody waits for. Pure. It agrees with the engine's own plan
(`engine/warmup.py`) because both follow from ordinals, settings and lost frames. What surprises: a window
of which every frame was lost is followed by another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from rearview.engine.rewarm import rewarms
from rearview.engine.session import CacheSettings, Rewarm, Settings

__all__ = ["CacheOptions", "WarmUp"]


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What a client chose for its temporal cache beside what the engine is told."""

    scene_detection: bool = True
    instant_start: bool = False
    """Whether a warm-up is its first frame, repeated."""


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
        self._lost = 0
        """Ordinals of it that have come back without a picture."""

    @property
    def frames(self) -> int:
        """W; 0: there is no warm-up."""
        return self._frames

    def missing(self, next_ordinal: int) -> int:
        """Ordinals, from `next_ordinal` on, that the window still waits for."""
        return max(0, self._start + self._frames - next_ordinal)

    def holds(self, ordinal: int) -> bool:
        """Whether the ordinal is in the window that was last."""
        return self._start <= ordinal < self._start + self._frames

    def enter(self, ordinal: int, settings: Settings) -> int:
        """The next frame is about to get `ordinal` under `settings`; returns the fillers to send before it:
        the frame then has the ordinal after theirs.
        """
        before, self._settings = self._settings, settings
        if ordinal and self._cache is not None and Rewarm.RESET in rewarms(before, settings, self._cache):
            self._start, self._lost = ordinal, 0
        return max(0, self.missing(ordinal) - 1) if self._instant else 0

    def lost(self, ordinal: int) -> None:
        """The ordinal came back without a picture."""
        if not self.holds(ordinal):
            return
        self._lost += 1
        if self._lost == self._frames:
            self._start, self._lost = self._start + self._frames, 0
