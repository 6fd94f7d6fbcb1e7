"""Which ordinals of a session warm its temporal cache up together, and when they do it again.

One plan for everybody: each denoising step in each engine follows it, and the ingress, which alone knows that
no more frames will come. It follows from ordinals, settings and lost frames, so that every cut of the chain
and every order of rows warms up with the same frames. W is the number of frames of a warm-up. After a
*reset* (a session's start is one) W ordinals go through a step together, as a window. After a change that
calls for a *shadow* W ordinals stream on against the old cache, and are read once more, as a window, when the
last of them has committed.

What surprises: a window always has W places. That of a frame that was lost, or that comes under the next
reset already, is taken by its neighbour. And the ingress completes a window that a reset cuts short. An
engine could do without, but a later span would learn of the reset only from its first frame, which an earlier
span holds back until its own window is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.settings import Settings

__all__ = [
    "Changes",
    "Keep",
    "LaneWarmUp",
    "LaneWarmUpState",
    "StepWarmUp",
    "WarmUpPlan",
    "places",
    "rewarms",
    "window_of",
]


@dataclass(frozen=True, slots=True)
class Changes:
    """The last changes behind a frame, each by the ordinal of the first frame that came under it."""

    reset_at: int = 0
    """What was cached before it means nothing."""
    changed_at: int = 0
    """What warmed the cache up before it no longer shows what is to be seen."""
    reweighted_at: int = 0
    """Other adapter sets, which may mean other weights: frames before it share no forward with those after
    it.
    """

    def shares_forward(self, other: Changes) -> bool:
        """Whether frames under these and under those may warm up together."""
        return (self.reset_at, self.reweighted_at) == (other.reset_at, other.reweighted_at)


def rewarms(before: Settings, after: Settings, cache: CacheSettings) -> Iterable[Rewarm]:
    """What a change of settings asks of a session's cache, change by change; none if nothing has changed."""
    if before.visited != after.visited or before.size != after.size:
        yield Rewarm.RESET
    if before.style != after.style:
        yield cache.prompt_change
    if before.scene != after.scene:
        yield cache.scene_cut


def window_of(since: int, ordinal: int, frames: int) -> range:
    """The window that `ordinal` is in, if all frames from `since` to it were lost: windows follow each other
    until one of them is not wholly lost.
    """
    start = since + (ordinal - since) // frames * frames
    return range(start, start + frames)


def places(present: Sequence[int], window: range) -> list[int]:
    """Whose frame takes each place of a window: its own, the nearest earlier one's, else the next one's.
    `present`: at least one ordinal, ascending.
    """
    return [max((n for n in present if n <= at), default=present[0]) for at in window]


@dataclass(slots=True)
class WarmUpPlan:
    """What the settings of a session's frames ask of its cache. The same at the ingress and in every span."""

    frames: int
    """W; 0: there is no cache."""
    cache: CacheSettings
    settings: Settings
    """Those of the newest frame; before the first one those of the session's start."""
    changes: Changes = Changes()
    """Those behind the newest frame."""

    def enter(self, ordinal: int, settings: Settings) -> Changes:
        """The next frame is in, and may bring a change; returns those behind it. In order of ordinals."""
        before, self.settings = self.settings, settings
        kinds = set(rewarms(before, settings, self.cache)) if ordinal else set()
        if Rewarm.RESET in kinds:
            self.changes = Changes(ordinal, ordinal, ordinal)
        elif Rewarm.SHADOW in kinds:
            self.changes = replace(self.changes, changed_at=ordinal)
        if ordinal and settings.adapter_names != before.adapter_names:
            self.changes = replace(self.changes, reweighted_at=ordinal)
        return self.changes

    def is_reset_by(self, settings: Settings) -> bool:
        """Whether a frame under `settings` begins another window if it comes next."""
        return bool(self.frames) and Rewarm.RESET in rewarms(self.settings, settings, self.cache)

    def together(self, head: int, in_flight: Mapping[int, Changes], expected: int) -> Sequence[int] | None:
        """Ordinals that warm up together with `head`, the first one before a cold step; None while more of
        them are to come.

        `in_flight`: what is behind each frame that is there; `expected`: the next ordinal to come.
        """
        behind = in_flight[head]
        window = window_of(behind.reset_at, head, self.frames)
        if expected < window.stop and self.changes.shares_forward(behind):
            return None
        return [n for n in window if n in in_flight and in_flight[n].shares_forward(behind)]


class Keep(Enum):
    """What to do with a frame's input once the frame has gone through a step."""

    NOTHING = "nothing"
    MORE = "more"
    """Keep it with those of the shadow window that is under way."""
    ANEW = "anew"
    """It is the first one of a shadow window: those that are kept are not needed."""


@dataclass(slots=True)
class StepWarmUp:
    """Where one denoising step of one session stands; at the ingress, where its whole lane does."""

    frames: int
    """W."""
    prefilled: int = -1
    """First ordinal of the window that the cache was last filled with, or should have been."""
    shadow: int | None = None
    """First ordinal of the window whose inputs are being kept."""
    shadow_weights: int = 0
    """`Changes.reweighted_at` of those inputs."""

    def is_cold(self, behind: Changes) -> bool:
        """Whether the cache means nothing to a frame that no earlier one still precedes here."""
        return self.prefilled < behind.reset_at

    @property
    def shadow_window(self) -> range:
        """Ordinals of the shadow window that is under way; empty if none is."""
        return range(0) if self.shadow is None else range(self.shadow, self.shadow + self.frames)

    def shadow_is_complete(self, committed: int) -> bool:
        """Whether the shadow window is to be read before anything else. `committed`: the last ordinal that
        the step committed.
        """
        return self.shadow is not None and committed == self.shadow_window.stop - 1

    def shadow_is_due(self, head: int, behind: Changes) -> bool:
        """Whether it is to be read before `head`, the next frame, although its own last frames were lost:
        only that frame knows that no other change followed.
        """
        window = self.shadow_window
        is_past = bool(window) and head >= window.stop and not self.is_cold(behind)
        return is_past and not window.start < behind.changed_at < window.stop

    def warmed_up(self, window: range) -> None:
        """The window has committed; one that was to be read again may also have been given up."""
        self.prefilled, self.shadow = window.start, None

    def keep(self, ordinal: int, behind: Changes) -> Keep:
        """A frame has gone through the step: whether a shadow window needs what it came with."""
        if behind.changed_at <= self.prefilled:
            return Keep.NOTHING
        start = window_of(behind.changed_at, ordinal, self.frames).start
        if (start, behind.reweighted_at) == (self.shadow, self.shadow_weights):
            return Keep.MORE
        self.shadow, self.shadow_weights = start, behind.reweighted_at
        return Keep.ANEW


@dataclass(frozen=True, slots=True)
class LaneWarmUpState:
    """Where the warm-ups of a session stand at its ingress."""

    settings: Settings
    """Of the last frame; before the first one those of the session's start."""
    changes: Changes = Changes()
    """Behind that frame."""
    prefilled: int = -1
    """First ordinal of the window of which a picture came back last."""
    window_start: int = 0
    """First ordinal of the window that is under way, or was last."""
    lost: tuple[int, ...] = ()
    """Ordinals from it on that have come back without a picture, until one comes back with one."""


@dataclass(slots=True)
class LaneWarmUp:
    """The warm-ups of one session as its ingress sees them: the lane is one step that has warmed up when a
    picture of the window comes back.

    The lane holds the first W frames of a warm-up until all of them are there. Only the ingress knows that no
    more will come, or that the first picture is wanted at once: then it sends *fillers*, the same picture
    under ordinals of its own, whose answers nobody waits for. A session without a cache has no warm-up.
    """

    plan: WarmUpPlan
    instant: bool = False
    """Whether a warm-up is its first frame, repeated."""
    _lane: StepWarmUp = field(init=False)
    _window: range = field(init=False)
    """Ordinals of the window that is under way, or was last."""
    _lost: set[int] = field(default_factory=set)
    """Ordinals from its first one on that have come back without a picture, until one comes back with one."""

    def __post_init__(self) -> None:
        self._lane, self._window = StepWarmUp(self.frames), range(self.frames)

    @classmethod
    def of(
        cls, frames: int, cache: CacheSettings | None, state: LaneWarmUpState, *, instant: bool = False
    ) -> LaneWarmUp:
        """`frames`: W, as the deployment has it; `state`: to go on from it."""
        width = frames if cache is not None else 0
        plan = WarmUpPlan(width, cache or CacheSettings(), state.settings, state.changes)
        lane = cls(plan, instant, set(state.lost))
        lane._lane.prefilled = state.prefilled
        lane._window = range(state.window_start, state.window_start + width)
        return lane

    @property
    def state(self) -> LaneWarmUpState:
        """With which another one goes on as this one would."""
        return LaneWarmUpState(
            self.plan.settings,
            self.plan.changes,
            self._lane.prefilled,
            self._window.start,
            tuple(sorted(self._lost)),
        )

    @property
    def frames(self) -> int:
        """W; 0: there is no warm-up."""
        return self.plan.frames

    @property
    def is_over(self) -> bool:
        """Whether no frame waits, or will have to wait, for others before the next reset."""
        return not self.frames or not self._lane.is_cold(self.plan.changes)

    def missing(self, next_ordinal: int) -> int:
        """Ordinals, from `next_ordinal` on, that the window still waits for."""
        return 0 if self.is_over else max(0, self._window.stop - next_ordinal)

    def holds(self, ordinal: int) -> bool:
        """Whether the ordinal is in the window that was last."""
        return ordinal in self._window

    def is_reset_by(self, settings: Settings) -> bool:
        """Whether a frame under `settings` begins another window if it comes next."""
        return self.plan.is_reset_by(settings)

    def enter(self, ordinal: int, settings: Settings) -> int:
        """The next frame is about to get `ordinal` under `settings`; returns the fillers to send before it:
        the frame then has the ordinal after theirs.
        """
        before = self.plan.changes.reset_at
        if self.plan.enter(ordinal, settings).reset_at != before and self.frames:
            self._begin(ordinal)
        return max(0, self.missing(ordinal) - 1) if self.instant else 0

    def restart(self, ordinal: int) -> None:
        """The lane begins anew at that ordinal, with an empty cache."""
        if self.frames:
            self.plan.changes = Changes(ordinal, ordinal, ordinal)
            self._lost.clear()
            self._begin(ordinal)

    def came_back(self, ordinal: int, *, lost: bool) -> None:
        """The ordinal has left the lane, `lost` without a picture."""
        if self.is_over or ordinal < self._window.start:
            return
        if lost:
            self._lost.add(ordinal)
            head = next(n for n in range(self._window.start, max(self._lost) + 2) if n not in self._lost)
            self._begin(head)
        elif self.holds(ordinal):
            self._lane.warmed_up(self._window)

    def _begin(self, head: int) -> None:
        """The window of `head`, before which all frames since the last reset were lost."""
        self._window = window_of(self.plan.changes.reset_at, head, self.frames)
        self._lost = {ordinal for ordinal in self._lost if ordinal >= self._window.start}
