"""A session in an engine: what it *is* apart from what is on its way.

What it is (`SessionState`) goes on in another engine whose span has its steps. What is on its way
(`InFlight`) is waited for, held or sent again. To move a session it is frozen at an ordinal: frames up to it
run, later ones are held, and when all is quiet nothing is on its way.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import NO_PLACE, UNSEEN, Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.warmup import Changes
from rearview.engine.course import Course
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.export import NO_STEP, Chunk
from rearview.engine.retained import Retained
from rearview.engine.rows import FrameInFlight
from rearview.engine.windows import ShadowInput, Windows, WindowsState, windows_from
from rearview.errors import InvalidRequest

__all__ = [
    "InFlight",
    "Session",
    "SessionState",
    "Standing",
    "begun_at",
    "joined",
    "new_session",
]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class InFlight:
    """What is on its way in one engine. A move waits it out."""

    retained: Retained
    frames: OrderedDict[int, FrameInFlight] = field(default_factory=OrderedDict)
    """By ordinal, in order."""
    early: dict[int, Frame[Tensor]] = field(default_factory=dict)
    """Arrived before an earlier ordinal did, or held since the session is frozen."""
    frozen_at: int | None = None
    """The last ordinal that is let in; None: all are."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """What a session is between two frames: all that another engine needs to go on with the next one."""

    operators: frozenset[Operator]
    """Those that it is the state of."""
    spec: SessionSpec
    settings: Mapping[int, Settings]
    """By version: those that a later frame may ask for."""
    expected: int
    """The next ordinal."""
    place: int
    """The highest place among the frames before it."""
    committed: Mapping[int, int]
    """Denoising step to the last ordinal that committed it."""
    flushing: bool
    memory: Sequence[Chunk]
    """Its past, as `Memories.export` gives it: keyed by kind, step and layer."""
    windows: WindowsState
    """Its warm-ups, with what is kept to be read once more."""

    def of_steps(self, steps: Collection[int]) -> SessionState:
        """The same without the denoising steps that are not among `steps`."""
        kept = frozenset(
            each for each in self.operators if each.kind is not OperatorKind.DENOISE or each.step in steps
        )
        known = {step: each for step, each in self.windows.steps.items() if step in steps}
        return replace(
            self,
            operators=kept,
            committed={step: last for step, last in self.committed.items() if step in steps},
            memory=[chunk for chunk in self.memory if chunk.step == NO_STEP or chunk.step in steps],
            windows=replace(self.windows, steps=known),
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a session stands between two steps: what whoever adopts it must know."""

    expected: int
    """The next ordinal to let in."""
    committed: Mapping[int, int]
    """Denoising step to the last ordinal that committed it."""
    versions: Sequence[int]
    """Of the settings that it knows."""
    retained: Sequence[Frame[Tensor]]
    """Outputs that were not acknowledged, by ordinal."""
    coming: Sequence[Frame[Tensor]]
    """As they came: those that have not left yet, whether they run, wait for an earlier one or are held."""


def joined(states: Sequence[SessionState]) -> SessionState:
    """What several engines, each of a piece of the chain, know of one session. Raises ValueError if they do
    not stand at the same ordinal.
    """
    first = states[0]
    if any((each.spec, each.expected) != (first.spec, first.expected) for each in states):
        raise ValueError(f"pieces of a session stand at ordinals {[each.expected for each in states]}")
    return replace(
        first,
        operators=frozenset().union(*(each.operators for each in states)),
        place=max(each.place for each in states),
        settings={version: under for each in states for version, under in each.settings.items()},
        committed={step: last for each in states for step, last in each.committed.items()},
        flushing=any(each.flushing for each in states),
        memory=[chunk for each in states for chunk in each.memory],
        windows=WindowsState(
            next((each.windows.plan for each in states if each.windows.plan is not None), None),
            {step: known for each in states for step, known in each.windows.steps.items()},
        ),
    )


def begun_at(
    spec: SessionSpec, span: Span, warm_up_frames: int, ordinal: int, settings: Mapping[int, Settings]
) -> SessionState:
    """A session whose past is empty and whose next ordinal is `ordinal`: what came before it is forgotten.

    `settings`: by version, at least one: the lowest is that of the frame at `ordinal`. `warm_up_frames`: W.
    """
    first = spec.sized(settings[min(settings)])
    return SessionState(
        operators=frozenset(span.operators),
        spec=spec,
        settings=settings,
        expected=ordinal,
        place=NO_PLACE,
        committed=dict.fromkeys(span.steps, ordinal - 1) if ordinal else {},
        flushing=False,
        memory=(),
        windows=windows_from(ordinal, warm_up_frames, spec, span.steps, first),
    )


@dataclass(slots=True)
class Session:
    """A session while it is open in an engine; its past is in the memory."""

    spec: SessionSpec
    span: Span
    ordered: frozenset[Operator]
    """Operators that one frame runs after the other."""
    windows: Windows
    flight: InFlight
    settings: dict[int, Settings]
    """By version."""
    expected: int = 0
    """The next ordinal to let in."""
    place: int = NO_PLACE
    """The highest place among the frames that were let in."""
    committed: dict[int, int] = field(default_factory=dict)
    """Denoising step to the last ordinal that committed it."""
    flushing: bool = False
    _courses: dict[bool, Course] = field(default_factory=dict)
    """Of the newest frames, those whose picture somebody takes and the others: settings seldom change."""

    def takes(self, version: int, settings: Settings, memory: Memories) -> bool:
        """Frames of that version are under `settings`. False, and a word in the log: they are of a size for
        which there is no room, and will be lost.
        """
        try:
            memory.check_fits(self.spec, self.spec.size_under(settings))
        except InvalidRequest as error:
            logger.error("settings of version %d are not taken: %s", version, error.message)
            return False
        self.settings[version] = self.spec.sized(settings)
        return True

    @property
    def frames(self) -> OrderedDict[int, FrameInFlight]:
        """In flight here, by ordinal, in order."""
        return self.flight.frames

    @property
    def flushes(self) -> bool:
        """Whether stream-batch order holds nothing back: no frame may follow for a while."""
        return self.flushing or self.flight.frozen_at is not None

    def let_in(self, now: float) -> Iterator[FrameInFlight]:
        """Take in what has come and is next, one frame at a time."""
        while self._may_enter and (coming := self.flight.early.pop(self.expected, None)) is not None:
            self.expected, self.place = self.expected + 1, max(self.place, coming.place)
            settings = self._settings_of(coming)
            frame = self._in_flight(coming, settings or self.spec.settings, self.windows.changes)
            frame.ready_s = now
            if settings is None:
                frame.planes = None
            else:
                frame.changes = self.windows.enter(coming.ordinal, settings)
            self.frames[coming.ordinal] = frame
            yield frame

    def is_own(self, frame: FrameInFlight) -> bool:
        """Whether it is in flight, and no copy that fills a window."""
        return self.frames.get(frame.ordinal) is frame

    def commit(self, frame: FrameInFlight, planes: Mapping[str, Tensor]) -> None:
        """The operator before `frame` has made `planes` of it, and what it writes is written."""
        operator = frame.operator
        if operator.kind is OperatorKind.DENOISE:
            last = self.committed.get(operator.step, -1)
            assert frame.ordinal > last, f"step {operator.step}: {frame.ordinal} after {last}"
            self.committed[operator.step] = frame.ordinal
            self.windows.passed(frame)
        frame.planes = planes
        frame.position += 1

    def freeze(self, ordinal: int) -> int:
        """See `Engine.freeze`."""
        known = self.flight.frozen_at
        self.flight.frozen_at = max(ordinal, self.expected - 1, -1 if known is None else known)
        return self._last_allowed(self.flight.frozen_at)

    @property
    def is_quiet(self) -> bool:
        """Whether it is frozen, and all that may run has run."""
        frozen_at = self.flight.frozen_at
        if frozen_at is None or self.frames or any(True for _ in self.windows.before_all(self)):
            return False
        return self.expected > self._last_allowed(frozen_at)

    def export(self, memory: Sequence[Chunk]) -> SessionState:
        """What it is, with its past, `memory`; a copy. Nothing may be in flight."""
        assert not self.frames, f"frames {list(self.frames)} are in flight: freeze the session first"
        return SessionState(
            frozenset(self.span.operators),
            self.spec,
            dict(self.settings),
            self.expected,
            self.place,
            dict(self.committed),
            self.flushing,
            memory,
            self.windows.export(),
        )

    @property
    def standing(self) -> Standing:
        """Where it stands; a copy."""
        early = self.flight.early
        coming = [*(frame.came for frame in self.frames.values()), *(early[n] for n in sorted(early))]
        return Standing(
            self.expected, dict(self.committed), sorted(self.settings), self.flight.retained.all(), coming
        )

    def resume(self, state: SessionState) -> None:
        """Go on from `state`. Raises ValueError if it lacks operators of this span."""
        if lacking := [each.name for each in self.span.operators if each not in state.operators]:
            raise ValueError(f"the session was exported without {', '.join(lacking)}")
        self.settings = {version: self.spec.sized(under) for version, under in state.settings.items()}
        self.flushing = state.flushing
        self.expected, self.place = state.expected, state.place
        self.committed = {step: last for step, last in state.committed.items() if step in self.span.steps}
        windows, plan = state.windows, state.windows.plan
        if plan is not None:  # Releases before say no size, which is none of another size.
            windows = replace(windows, plan=replace(plan, settings=self.spec.sized(plan.settings)))
        self.windows.resume(windows, self._kept)

    def check_integrity(self) -> None:
        """Assert what must hold between steps."""
        assert all(not frame.done for frame in self.frames.values()), "a done frame was not emitted"
        assert list(self.frames) == sorted(self.frames), "frames are out of order"
        assert all(ordinal >= self.expected for ordinal in self.flight.early), "an early frame was not let in"
        self.windows.check_integrity()

    @property
    def _may_enter(self) -> bool:
        frozen_at = self.flight.frozen_at
        return frozen_at is None or self.expected <= self._last_allowed(frozen_at)

    def _last_allowed(self, frozen_at: int) -> int:
        """The last ordinal to let in. What came or was lost since it was frozen may have moved it."""
        self.flight.frozen_at = self.windows.end_of_window(frozen_at, self)
        return self.flight.frozen_at

    def _settings_of(self, frame: Frame[Tensor]) -> Settings | None:
        """None, and a word in the log: it cannot be translated."""
        settings = self.settings.get(frame.settings_version)
        if settings is None:
            logger.error("no settings of version %d: the frame is dropped", frame.settings_version)
            return None
        # Versions never fall from one ordinal to the next, so no later frame asks for an older one.
        for version in [known for known in self.settings if known < frame.settings_version]:
            del self.settings[version]
        if settings.steps > self.spec.max_steps:
            steps, most = settings.steps, self.spec.max_steps
            logger.error("%d steps, but the session has %d: the frame is dropped", steps, most)
            return None
        return settings

    def _in_flight(self, came: Frame[Tensor], settings: Settings, changes: Changes) -> FrameInFlight:
        unseen = came.place == UNSEEN
        course = self._courses.get(unseen)
        if course is None or course.settings is not settings:
            course = self._courses[unseen] = self._course(settings, unseen=unseen)
        # Only a span before the last step makes something that the next one needs.
        is_unseen = unseen and self.span.ends(settings.steps)
        return FrameInFlight(
            self.spec, settings, came, came.planes, course, changes=changes, is_unseen=is_unseen
        )

    def _course(self, settings: Settings, *, unseen: bool) -> Course:
        operators = [
            each
            for each in self.span.operators
            if (each.kind is not OperatorKind.DENOISE or each.step < settings.steps)
            and not (unseen and each.kind is OperatorKind.DECODE)
        ]
        return Course(settings, operators, self.ordered)

    def _kept(self, given: ShadowInput, step: int) -> FrameInFlight:
        """An input of a shadow window as a frame of this engine. Nobody waits for it: it has no deadline."""
        came = Frame(self.spec.session_id, given.ordinal, given.planes)
        frame = self._in_flight(came, given.settings, given.changes)
        frame.position = frame.operators.index(Operator(OperatorKind.DENOISE, step))
        return frame


def new_session(spec: SessionSpec, span: Span, memory: Memories, retained: Retained) -> Session:
    """One that begins. `retained`: where its outputs are kept until they are acknowledged."""
    ordered = frozenset(
        operator
        for operator in span.operators
        if operator.kind is OperatorKind.DENOISE or memory.keeps_order(spec, operator)
    )
    windows = memory.windows(spec, span.steps)
    return Session(spec, span, ordered, windows, InFlight(retained), {0: spec.sized(spec.settings)})
