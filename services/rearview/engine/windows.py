"""Which of a session's frames go through a denoising step together, and what is kept to do it again.

`WarmUps` does what `contract/warmup.py` plans, with frames in place of ordinals, for a session whose memory
warms up. `NoWindows` is the same for all other sessions and does nothing: every frame goes alone. What
surprises: a place of a window whose frame was lost is taken by a copy of its neighbour, noise included, whose
picture nobody sees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.warmup import Changes, Keep, StepWarmUp, WarmUpPlan, places, window_of
from rearview.engine.planes import Planes, kept, on_host
from rearview.engine.rows import MAX_FAILURES, FrameInFlight, Row

__all__ = [
    "Flight",
    "NoWindows",
    "ShadowInput",
    "Turn",
    "WarmUps",
    "Windows",
    "WindowsState",
    "filled",
    "new_windows",
    "windows_from",
]

logger = logging.getLogger(__name__)


class Flight(Protocol):
    """What windows are made of: a session as far as they see it."""

    @property
    def frames(self) -> Mapping[int, FrameInFlight]:
        """In flight here, by ordinal, in order."""

    @property
    def expected(self) -> int:
        """The next ordinal to be let in."""

    @property
    def committed(self) -> Mapping[int, int]:
        """Denoising step to the last ordinal that committed it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Frames that go through an operator as one row."""

    frames: tuple[FrameInFlight, ...]
    warms_up: bool = False
    shadow: bool = False
    waiting: FrameInFlight | None = None
    """The frame that a shadow window holds up, as if it were before the operator already; None: nobody."""

    @property
    def operator(self) -> Operator:
        return self.frames[-1].operator


@dataclass(frozen=True, slots=True)
class ShadowInput:
    """A frame as it entered a step, kept to be read once more."""

    ordinal: int
    settings: Settings
    planes: Planes
    """On the host."""
    changes: Changes


@dataclass(frozen=True, slots=True)
class WindowsState:
    """Where the windows of a session stand, between two frames and apart from any engine."""

    plan: WarmUpPlan | None = None
    """None: its frames never wait for each other."""
    steps: Mapping[int, tuple[StepWarmUp, Sequence[ShadowInput]]] = field(default_factory=dict)
    """Denoising step to where it stands, and what it keeps for a shadow window."""


class Windows(Protocol):
    """Which frames of one session go together."""

    def enter(self, ordinal: int, settings: Settings) -> Changes:
        """The next frame is in; returns the changes behind it. In order of ordinals."""

    @property
    def changes(self) -> Changes:
        """Those behind the newest frame."""

    def resume(self, state: WindowsState, back: Callable[[ShadowInput, int], FrameInFlight]) -> None:
        """Go on from `state`, which has the steps of the span. `back` makes an input of a step a frame of
        this engine again. Raises ValueError if it warmed up with another number of frames.
        """

    def before_all(self, flight: Flight) -> Iterator[Turn]:
        """What has to run before any frame may go on to its step."""

    def turn(self, head: FrameInFlight, flight: Flight) -> Turn | None:
        """What `head` goes in, the first frame before its operator; None: it waits for others."""

    def goes_alone(self, frame: FrameInFlight) -> bool:
        """Whether `frame` will be in no window with others, whatever happens."""

    def frames_at(self, frame: FrameInFlight, operator: Operator) -> int:
        """How many frames there are in the window in which `frame` will run `operator`, unless all frames
        before it are lost; 0 if it will run alone.
        """

    def committed(self, row: Row) -> None:
        """What a row read has been written."""

    def passed(self, frame: FrameInFlight) -> None:
        """`frame`, as it still is, has committed its denoising step."""

    def failed(self, row: Row) -> None:
        """The forward of a row failed."""

    def end_of_window(self, ordinal: int, flight: Flight) -> int:
        """`ordinal`, or the last one of the window that would be cut if no frame after `ordinal` came."""

    def export(self) -> WindowsState:
        """Where they stand; a copy."""

    def check_integrity(self) -> None:
        """Assert what must hold between steps."""


class NoWindows:
    """Every frame goes alone, and nothing is kept."""

    changes = Changes()

    def enter(self, ordinal: int, settings: Settings) -> Changes:
        return self.changes

    def resume(self, state: WindowsState, back: Callable[[ShadowInput, int], FrameInFlight]) -> None:
        pass

    def before_all(self, flight: Flight) -> Iterator[Turn]:
        return iter(())

    def turn(self, head: FrameInFlight, flight: Flight) -> Turn | None:
        return Turn((head,))

    def goes_alone(self, frame: FrameInFlight) -> bool:
        return True

    def frames_at(self, frame: FrameInFlight, operator: Operator) -> int:
        return 0

    def committed(self, row: Row) -> None:
        pass

    def passed(self, frame: FrameInFlight) -> None:
        pass

    def failed(self, row: Row) -> None:
        pass

    def end_of_window(self, ordinal: int, flight: Flight) -> int:
        return ordinal

    def export(self) -> WindowsState:
        return WindowsState()

    def check_integrity(self) -> None:
        pass


@dataclass(slots=True)
class StepWindows:
    """One step: where it stands, and the frames of a shadow window as they entered it.

    At most W frames, where they were computed, and only while a shadow window is under way. 64 KiB each for
    Stable Diffusion 1.5 at 512 x 512, up to three times that with depth and an anchor: a thousandth of the
    cache that they refill, and no part of any pool's bytes. What each control is shown adds 768 KiB.
    """

    plan: StepWarmUp
    inputs: list[FrameInFlight] = field(default_factory=list)


@dataclass(slots=True)
class WarmUps:
    """The windows of a session with a temporal cache."""

    plan: WarmUpPlan
    steps: dict[int, StepWindows]
    """By index: the steps of the span."""

    @property
    def changes(self) -> Changes:
        return self.plan.changes

    def resume(self, state: WindowsState, back: Callable[[ShadowInput, int], FrameInFlight]) -> None:
        if state.plan is None or state.plan.frames != self.plan.frames:
            theirs = None if state.plan is None else state.plan.frames
            raise ValueError(f"the session warmed up with {theirs} frames, here it is {self.plan.frames}")
        if lacking := self.steps.keys() - state.steps.keys():
            raise ValueError(f"the session's warm-ups of steps {sorted(lacking)} are not known")
        self.plan = replace(state.plan)
        for index, step in self.steps.items():
            plan, inputs = state.steps[index]
            step.plan = replace(plan)
            step.inputs = [back(each, index) for each in inputs]

    def enter(self, ordinal: int, settings: Settings) -> Changes:
        return self.plan.enter(ordinal, settings)

    def before_all(self, flight: Flight) -> Iterator[Turn]:
        for index, step in self.steps.items():
            if step.plan.shadow_is_complete(flight.committed.get(index, -1)):
                yield self._shadow(step, flight)

    def turn(self, head: FrameInFlight, flight: Flight) -> Turn | None:
        if head.operator.kind is not OperatorKind.DENOISE:
            return Turn((head,))
        step = self.steps[head.operator.step]
        if step.plan.is_cold(head.changes):
            return self._window(head, flight)
        if step.plan.shadow_is_due(head.ordinal, head.changes):
            return self._shadow(step, flight)
        return Turn((head,))

    def goes_alone(self, frame: FrameInFlight) -> bool:
        return frame.ordinal >= frame.changes.reset_at + self.plan.frames

    def frames_at(self, frame: FrameInFlight, operator: Operator) -> int:
        if self.goes_alone(frame) or operator.kind is not OperatorKind.DENOISE:
            return 0
        return self.plan.frames if self.steps[operator.step].plan.is_cold(frame.changes) else 0

    def committed(self, row: Row) -> None:
        if row.warms_up:
            self._warmed_up(row)

    def passed(self, frame: FrameInFlight) -> None:
        step = self.steps[frame.operator.step]
        keep = step.plan.keep(frame.ordinal, frame.changes)
        if keep is Keep.ANEW:
            step.inputs = []
        if keep is not Keep.NOTHING:
            assert frame.planes is not None, f"frame {frame.ordinal} was lost and has passed"
            step.inputs.append(replace(frame, planes=kept(frame.planes)))

    def failed(self, row: Row) -> None:
        if not row.shadow:
            return
        inputs = self.steps[row.operator.step].inputs
        for frame in inputs:
            frame.failures += 1
        if inputs[-1].failures >= MAX_FAILURES:
            whose = {"session_id": row.session_id, "tenant": row.frame.spec.tenant}
            text = "%s was not warmed up anew: the old cache is kept"
            logger.error(text, row.operator.name, extra={"fields": whose})
            self._warmed_up(row)

    def end_of_window(self, ordinal: int, flight: Flight) -> int:
        since = self.changes.reset_at
        ahead = (n for n, frame in flight.frames.items() if frame.changes.reset_at == since)
        window = window_of(since, next(ahead, flight.expected), self.plan.frames)
        cold = (
            step.plan.is_cold(self.changes)
            for index, step in self.steps.items()
            if index < self.plan.settings.steps
        )
        return window.stop - 1 if ordinal in window and any(cold) else ordinal

    def export(self) -> WindowsState:
        steps = {
            index: (replace(step.plan), tuple(map(_shadow_input, step.inputs)))
            for index, step in self.steps.items()
        }
        return WindowsState(replace(self.plan), steps)

    def check_integrity(self) -> None:
        for index, step in self.steps.items():
            assert len(step.inputs) <= self.plan.frames, f"step {index} keeps {len(step.inputs)} inputs"
            assert bool(step.inputs) == (step.plan.shadow is not None), f"step {index} keeps what for?"

    def _window(self, head: FrameInFlight, flight: Flight) -> Turn | None:
        """The frames that warm up the step before which `head` is first; None while one is not there yet."""
        behind = {ordinal: frame.changes for ordinal, frame in flight.frames.items()}
        ordinals = self.plan.together(head.ordinal, behind, flight.expected)
        frames = [flight.frames[ordinal] for ordinal in ordinals or ()]
        if not frames or any(frame.operator != head.operator for frame in frames):
            return None
        window = window_of(head.changes.reset_at, head.ordinal, self.plan.frames)
        return Turn(filled(frames, window), warms_up=True)

    def _shadow(self, step: StepWindows, flight: Flight) -> Turn:
        """The window that is read once more; the frame that comes after it waits for it."""
        window = step.plan.shadow_window
        frames = filled(step.inputs, window)
        last, waiting = frames[-1], flight.frames.get(window.stop)
        if waiting is None or last.operator not in waiting.remaining:
            return Turn(frames, warms_up=True, shadow=True)
        last = replace(last, came=replace(last.came, deadline_s=waiting.deadline_s))
        waiting = replace(waiting, position=waiting.operators.index(last.operator))
        return Turn((*frames[:-1], last), warms_up=True, shadow=True, waiting=waiting)

    def _warmed_up(self, row: Row) -> None:
        step, last = self.steps[row.operator.step], row.frame
        window = window_of(last.changes.reset_at, last.ordinal, self.plan.frames)
        step.plan.warmed_up(step.plan.shadow_window if row.shadow else window)
        step.inputs = []


def _shadow_input(frame: FrameInFlight) -> ShadowInput:
    assert frame.planes is not None, f"frame {frame.ordinal} was lost and is kept"
    (planes,) = on_host([frame.planes])
    return ShadowInput(frame.ordinal, frame.settings, planes, frame.changes)


def filled(frames: Sequence[FrameInFlight], window: range) -> tuple[FrameInFlight, ...]:
    """A window with every place taken; where the frame itself is missing, by a copy of its neighbour.
    `frames`: at least one, in order.
    """
    present = {frame.ordinal: frame for frame in frames}
    taken = zip(window, places(list(present), window), strict=True)
    return tuple(present[n] if n == place else replace(present[n]) for place, n in taken)


def new_windows(frames: int, spec: SessionSpec, steps: Sequence[int]) -> Windows:
    """Those of a session that begins. `frames`: W, 0 without a temporal cache; `steps`: those of the span."""
    if not frames:
        return NoWindows()
    assert spec.cache is not None, "a warm-up without a temporal cache"
    plan = WarmUpPlan(frames, spec.cache, spec.sized(spec.settings))
    return WarmUps(plan, {step: StepWindows(StepWarmUp(frames)) for step in steps})


def windows_from(
    ordinal: int, frames: int, spec: SessionSpec, steps: Sequence[int], settings: Settings
) -> WindowsState:
    """Those of a session whose first window begins at `ordinal`. `frames`, `steps`: as of `new_windows`;
    `settings`: those of the frame at `ordinal`.
    """
    if not frames:
        return WindowsState()
    assert spec.cache is not None, "a warm-up without a temporal cache"
    plan = WarmUpPlan(frames, spec.cache, settings, Changes(ordinal, ordinal, ordinal))
    return WindowsState(plan, {step: (StepWarmUp(frames), ()) for step in steps})
