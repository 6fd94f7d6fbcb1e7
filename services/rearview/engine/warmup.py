"""Which frames of a session warm a step's temporal cache up, and when they do it again.

Pure bookkeeping: it follows from ordinals, settings and from which frames were lost, step by step, so
that every cut of the chain and every order of rows warms up with the same frames. W is the number of
frames of a warm-up. After a *reset* (a session's start is one) W ordinals go through a step together, as
a window. After a change that calls for a *shadow* W ordinals stream on against the old cache; what they
entered the step with is kept, and read once more as a window when the last of them has committed.

What surprises: a window always has W places. That of a frame that was lost, or that comes under the
next reset already, is taken by a copy of its neighbour, noise included, whose picture nobody sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.rewarm import rewarms
from rearview.contract.settings import Settings
from rearview.engine.rows import Changes, FrameInFlight

__all__ = ["StepWarmUp", "WarmUp", "filled"]


@dataclass(slots=True)
class StepWarmUp:
    """Where one denoising step of one session stands."""

    frames: int
    """W."""
    prefilled: int = -1
    """First ordinal of the window that the cache was last filled with, or should have been."""
    shadow: int | None = None
    """First ordinal of the window whose inputs are being kept."""
    inputs: list[FrameInFlight] = field(default_factory=list)
    """Frames of it as they entered the step: at most W frames, on the host and only while a shadow
    window is under way. 64 KiB each for Stable Diffusion 1.5 at 512 x 512, up to three times that with
    depth and an anchor: a thousandth of the cache that they refill, and no part of any pool's bytes."""

    def is_cold(self, frame: FrameInFlight) -> bool:
        """Whether the cache means nothing to `frame`, which no earlier frame still precedes here."""
        return self.prefilled < frame.changes.reset_at

    def start(self, frame: FrameInFlight) -> int:
        """First ordinal of the window that a cold step's `frame` is in: all before it were lost."""
        return _start(frame.changes.reset_at, frame.ordinal, self.frames)

    def shadow_is_due(self, committed: int, head: FrameInFlight | None = None) -> bool:
        """Whether the shadow window is complete and to be read before anything else.

        `committed`: the last ordinal that the step committed. `head`: the next frame, if it is here.
        """
        if self.shadow is None:
            return False
        if committed == self.shadow + self.frames - 1:
            return True
        # The last frames of the window were lost: only the next one knows that no other change followed.
        return (
            head is not None
            and head.ordinal >= self.shadow + self.frames
            and not self.is_cold(head)
            and not self.shadow < head.changes.changed_at < self.shadow + self.frames
        )

    def warmed_up(self, frame: FrameInFlight, *, shadow: bool = False) -> None:
        """A window that `frame` is in has committed; a shadow one may also have been given up."""
        assert self.shadow is not None or not shadow, "a shadow window that nobody asked for"
        self.prefilled = self.start(frame) if not shadow or self.shadow is None else self.shadow
        self.shadow = None
        self.inputs = []

    def keep(self, frame: FrameInFlight) -> None:
        """`frame`, as it entered the step, has committed: keep it if a shadow window needs it."""
        changed_at = frame.changes.changed_at
        if changed_at <= self.prefilled:
            return
        start = _start(changed_at, frame.ordinal, self.frames)
        last = self.inputs[-1] if self.inputs else frame
        if start != self.shadow or last.changes.reweighted_at != frame.changes.reweighted_at:
            self.shadow, self.inputs = start, []
        self.inputs.append(frame)


class WarmUp:
    """The warm-ups of one session."""

    def __init__(self, frames: int, cache: CacheSettings, settings: Settings) -> None:
        """`frames`: W, at least 1. `settings`: those of the session's start."""
        assert frames >= 1, f"a warm-up of {frames} frames"
        self.frames = frames
        self.changes = Changes()
        """Those behind the newest frame."""
        self._cache, self._settings = cache, settings
        self._steps: dict[int, StepWarmUp] = {}

    @property
    def steps(self) -> Mapping[int, StepWarmUp]:
        """Those that were asked for, by step index."""
        return self._steps

    def step(self, step: int) -> StepWarmUp:
        return self._steps.setdefault(step, StepWarmUp(self.frames))

    def enter(self, ordinal: int, settings: Settings) -> None:
        """The next frame is in, and may bring a change. In order of ordinals."""
        before, self._settings = self._settings, settings
        kinds = set(rewarms(before, settings, self._cache)) if ordinal else set()
        if Rewarm.RESET in kinds:
            self.changes = Changes(ordinal, ordinal, ordinal)
        elif Rewarm.SHADOW in kinds:
            self.changes = replace(self.changes, changed_at=ordinal)
        if ordinal and settings.adapters != before.adapters:
            self.changes = replace(self.changes, reweighted_at=ordinal)

    def window(
        self, step: int, head: FrameInFlight, in_flight: Mapping[int, FrameInFlight], expected: int
    ) -> Sequence[FrameInFlight] | None:
        """The frames that warm up together with `head`, the first one before a cold step; None while
        more of them are to come.

        `expected`: the next ordinal to be let in.
        """
        first = self.step(step).start(head)
        together = [
            frame
            for ordinal in range(first, first + self.frames)
            if (frame := in_flight.get(ordinal)) and frame.changes.shares_forward(head.changes)
        ]
        is_whole = expected >= first + self.frames or not self.changes.shares_forward(head.changes)
        return together if is_whole else None


def filled(frames: Iterable[FrameInFlight], start: int, places: int) -> tuple[FrameInFlight, ...]:
    """A window from ordinal `start` with every place taken: by its frame, by a copy of the nearest
    earlier one, else of the next later one. `frames`: at least one, in order.
    """
    present = {frame.ordinal: frame for frame in frames}
    nearest = min(present.values(), key=lambda frame: frame.ordinal)
    window = []
    for ordinal in range(start, start + places):
        nearest = present.get(ordinal, nearest)
        window.append(nearest if nearest.ordinal == ordinal else replace(nearest))
    return tuple(window)


def _start(since: int, ordinal: int, frames: int) -> int:
    """Windows follow each other from `since` until one of them is not wholly lost."""
    return since + (ordinal - since) // frames * frames
