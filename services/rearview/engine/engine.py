"""`Engine.step()`: choose rows → gather their memory → one forward → scatter → emit.

An engine owns one span of the chain: weights (`Model`), the sessions' pasts (`Memories`) and the
frames in flight. The whole chain in one engine is the local service; one engine per span, joined by
links, is the distributed one, and both run this same `step`. What surprises: a forward changes nothing.
Memory, `committed` and the frame's payload change together in `_commit`, so a row that failed before it
can run again, and one that was committed never does.

Not thread-safe: one thread owns an engine. `now` and `clock` are seconds on one monotonic clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice

from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import Frame, Timing
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Forward, Model, row_group
from rearview.engine.open_session import OpenSession, SessionState
from rearview.engine.rows import (
    FrameInFlight,
    LaterRow,
    Row,
    row_width,
    window_group,
)
from rearview.engine.scheduler import Scheduler
from rearview.engine.warmup import WarmUp, filled

__all__ = ["Batch", "Engine", "Order", "StepResult"]

logger = logging.getLogger(__name__)

RETAINED_OUTPUTS = 8
"""Outputs kept per session, to answer a frame that is sent a second time."""
MAX_FAILURES = 2
"""A row that fails alone after having failed before makes its frame dropped."""


class Order(Enum):
    """In which order a session's rows run. The pictures are the same."""

    BACK_TO_BACK = "back_to_back"
    """A frame runs its steps one after another: lowest latency."""
    STREAM_BATCH = "stream_batch"
    """A frame moves one step per arriving frame (StreamDiffusion): S-1 frame intervals of delay."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward, for metrics."""

    kind: OperatorKind
    rows: int
    seconds: float
    failed: bool


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did."""

    emissions: Sequence[Frame[Tensor]]
    batch: Batch | None
    """None: no row was ready."""
    queue_age_s: float = 0.0
    """How long the oldest row has waited that was ready and not chosen; 0 with none."""


class Engine:
    """The rows of many sessions through one span."""

    def __init__(
        self,
        span: Span,
        model: Model,
        memory: Memories,
        scheduler: Scheduler,
        *,
        order: Order = Order.BACK_TO_BACK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.span = span
        self._model = model
        self._memory = memory
        self._scheduler = scheduler
        self._order = order
        self._clock = clock
        self._sessions: dict[str, OpenSession] = {}
        self._emissions: list[Frame[Tensor]] = []

    def open(self, spec: SessionSpec) -> None:
        """Take a slot. Raises Refused(NO_CAPACITY), and then nothing has changed."""
        assert spec.session_id not in self._sessions, "session is already open"
        self._memory.allocate(spec)
        self._sessions[spec.session_id] = self._session(spec)
        self._prepare(spec.settings)

    def close(self, session_id: str) -> None:
        """Forget the session and what it holds, frames in flight included. Unknown ones are ignored."""
        if self._sessions.pop(session_id, None) is not None:
            self._memory.free(session_id)
            # A session that opens again under this id must not answer for this one.
            self._emissions = [left for left in self._emissions if left.session_id != session_id]

    def export(self, session_id: str) -> SessionState:
        """The session between two steps, frames in flight and what is retained included; a copy. It goes
        on from there in another engine of the same span.
        """
        return SessionState(deepcopy(self._sessions[session_id]), tuple(self._memory.export(session_id)))

    def import_(self, state: SessionState) -> None:
        """Open a session that was exported. Raises Refused(NO_CAPACITY), and ValueError if the memory does
        not fit; nothing has changed then.
        """
        spec = state.session.spec
        assert spec.session_id not in self._sessions, "session is already open"
        self._memory.allocate(spec)
        try:
            self._memory.import_(spec.session_id, state.memory)
        except ValueError:
            self._memory.free(spec.session_id)
            raise
        session = self._sessions[spec.session_id] = deepcopy(state.session)
        for settings in session.settings.values():
            self._prepare(settings)

    def update(self, session_id: str, version: int, settings: Settings) -> None:
        """Frames admitted with `version` from now on are translated under `settings`."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.settings[version] = settings
            self._prepare(settings)

    def flush(self, session_id: str) -> None:
        """No frame will follow: what stream-batch order holds back may run."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.flushing = True

    def admit(self, frame: Frame[Tensor], now: float) -> bool:
        """Let a frame in; frames may arrive in any order. False: there is no such session (any more).

        A frame that was let in before is not run again: if its output is still here it is sent again.
        """
        session = self._sessions.get(frame.session_id)
        if session is None:
            return False
        if frame.ordinal < session.expected:
            if frame.ordinal in session.retained:
                self._emissions.append(session.retained[frame.ordinal])
            return True
        session.early[frame.ordinal] = frame
        while (following := session.early.pop(session.expected, None)) is not None:
            session.expected += 1
            self._enter(session, following, now)
        return True

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._emissions) or any(True for _ in self._ready())

    @property
    def free_slots(self) -> int:
        """Sessions that still fit."""
        return self._memory.free_slots

    @property
    def sessions(self) -> Sequence[str]:
        """Ids of the open sessions."""
        return tuple(self._sessions)

    def step(self, now: float) -> StepResult:
        """Run one batch of ready rows; returns every frame that has left the span since the last call."""
        ready = list(self._ready())
        rows = self._scheduler.choose(ready, now)
        chosen = {id(row) for row in rows}
        age_s = now - min((row.frame.ready_s for row in ready if id(row) not in chosen), default=now)
        batch = self._run(rows, now) if rows else None
        emissions, self._emissions = self._emissions, []
        return StepResult(emissions, batch, age_s)

    def check_integrity(self) -> None:
        """Assert what must hold between steps."""
        self._memory.check_integrity()
        for session in self._sessions.values():
            assert all(not frame.done for frame in session.frames.values()), "a done frame was not emitted"
            assert list(session.frames) == sorted(session.frames), "frames are out of order"
            assert all(o >= session.expected for o in session.early), "an early frame was not let in"
            for step, state in session.warm_up.steps.items() if session.warm_up is not None else ():
                assert len(state.inputs) <= state.frames, f"step {step} keeps {len(state.inputs)} inputs"
                assert bool(state.inputs) == (state.shadow is not None), f"step {step} keeps what for?"

    def _session(self, spec: SessionSpec) -> OpenSession:
        ordered = frozenset(
            operator
            for operator in self.span.operators
            if operator.kind is OperatorKind.DENOISE or self._memory.keeps_order(spec, operator)
        )
        frames = self._memory.warm_up_frames(spec)
        warm_up = None
        if frames:
            assert spec.cache is not None, "a warm-up without a temporal cache"
            warm_up = WarmUp(frames, spec.cache, spec.settings)
        return OpenSession(spec, {0: spec.settings}, ordered, warm_up)

    def _prepare(self, settings: Settings) -> None:
        try:
            self._model.prepare(settings)
        except Exception:  # It only saves time: if it fails again in a forward, frames end there.
            logger.exception("settings could not be prepared")

    def _enter(self, session: OpenSession, entering: Frame[Tensor], now: float) -> None:
        settings = session.settings.get(entering.settings_version)
        if settings is None:
            logger.error("no settings of version %d: the frame is dropped", entering.settings_version)
        else:
            # Versions never fall from one ordinal to the next, so no later frame asks for an older one.
            for version in [v for v in session.settings if v < entering.settings_version]:
                del session.settings[version]
            if settings.steps > session.spec.max_steps:
                steps, most = settings.steps, session.spec.max_steps
                logger.error("%d steps, but the session has %d: the frame is dropped", steps, most)
                settings = None
        frame = self._frame(session.spec, entering, settings, now)
        if session.warm_up is not None:
            if settings is not None:
                session.warm_up.enter(frame.ordinal, settings)
            frame.changes = session.warm_up.changes
        session.frames[frame.ordinal] = frame
        self._emit_if_done(session, frame)

    def _frame(
        self, spec: SessionSpec, entering: Frame[Tensor], known: Settings | None, now: float
    ) -> FrameInFlight:
        settings = known or spec.settings
        return FrameInFlight(
            spec=spec,
            settings=settings,
            came=entering,
            planes=None if known is None else entering.planes,
            operators=tuple(
                operator
                for operator in self.span.operators
                if operator.kind is not OperatorKind.DENOISE or operator.step < settings.steps
            ),
            ready_s=now,
        )

    def _ready(self) -> Iterator[Row]:
        for session in self._sessions.values():
            yield from self._ready_in(session)

    def _ready_in(self, session: OpenSession) -> Iterator[Row]:
        """The ready rule: (n, k) waits until no earlier ordinal in flight has step k before it.

        Before a step whose cache is cold the first frames wait for each other, and go on as one row;
        when the last frame of a shadow window has committed, that window comes before all others.
        """
        preceded: set[Operator] = set()
        # Rows that ask what is later before a frame may ask for steps that were never asked for.
        for step in tuple(session.warm_up.steps) if session.warm_up is not None else ():
            if session.shadow_is_due(step):
                yield self._shadow_row(session, step)
                preceded.add(Operator(OperatorKind.DENOISE, step))
        for frame in session.frames.values():
            if frame.operator not in preceded:
                row = self._next_row(session, frame)
                if row is not None:
                    yield row
            preceded.update(session.ordered.intersection(frame.remaining))

    def _next_row(self, session: OpenSession, frame: FrameInFlight) -> Row | None:
        """The row that `frame`, the first one before its operator, is in; None if it has to wait."""
        operator = frame.operator
        if operator.kind is OperatorKind.DENOISE:
            if session.is_cold(frame, operator.step):
                return self._window_row(session, frame)
            if session.shadow_is_due(operator.step, frame):
                return self._shadow_row(session, operator.step)
        return None if self._held_back(session, frame) else self._row(session, frame)

    def _held_back(self, session: OpenSession, frame: FrameInFlight) -> bool:
        """In stream-batch order step k of frame n waits until frame n + k is encoded: they share forwards."""
        if self._order is Order.BACK_TO_BACK or session.flushing:
            return False
        newest = session.frames.get(frame.ordinal + frame.operator.step)
        if newest is None:  # It has not come yet, or it has left.
            return session.expected <= frame.ordinal + frame.operator.step
        return newest.operator.kind is OperatorKind.ENCODE and frame.operator.kind is OperatorKind.DENOISE

    def _row(self, session: OpenSession, frame: FrameInFlight) -> Row:
        group = self._group(frame.spec, frame.settings, frame.operator)
        row = Row(frame, frame.operator, group, 0.0, later=tuple(self._later(session, frame)))
        return self._scheduled(row, frame.deadline_s)

    def _window_row(self, session: OpenSession, head: FrameInFlight) -> Row | None:
        """The row that warms up the step before which `head` is first; None while a frame of it is not
        there yet.
        """
        assert session.warm_up is not None
        step, operator = session.warm_up.step(head.operator.step), head.operator
        frames = session.warm_up.window(operator.step, head, session.frames, session.expected)
        if frames is None or any(frame.operator != operator for frame in frames):
            return None
        window = filled(frames, step.start(head), step.frames)
        group = window_group(self._group(head.spec, head.settings, operator))
        later = tuple(self._later(session, frames[-1], step.frames))
        return self._scheduled(
            Row(window[-1], operator, group, 0.0, later=later, window=window), window[-1].deadline_s
        )

    def _shadow_row(self, session: OpenSession, step: int) -> Row:
        """The row that reads a shadow window; the frame that comes after it waits for it."""
        assert session.warm_up is not None
        state = session.warm_up.step(step)
        assert state.shadow is not None
        window = filled(state.inputs, state.shadow, state.frames)
        frame, operator = window[-1], window[-1].operator
        later: tuple[LaterRow, ...] = ()
        waiting = session.frames.get(state.shadow + state.frames)
        if waiting is not None and operator in waiting.remaining:
            before = waiting.operators.index(operator) - 1
            later = tuple(self._later(session, waiting, position=before))
            frame = replace(frame, came=replace(frame.came, deadline_s=waiting.deadline_s))
        group = window_group(self._group(frame.spec, frame.settings, operator))
        row = Row(frame, operator, group, 0.0, later=later, window=(*window[:-1], frame), shadow=True)
        return self._scheduled(row, frame.deadline_s)

    def _later(
        self, session: OpenSession, frame: FrameInFlight, frames: int = 1, position: int | None = None
    ) -> Iterator[LaterRow]:
        """What is still before `frame` after its operator (or that at `position`), if `frames` go on
        together.
        """
        after = frame.position if position is None else position
        for operator in frame.operators[after + 1 :]:
            group = self._group(frame.spec, frame.settings, operator)
            width = row_width(operator, frame.settings)
            if self._is_in_window(session, frame, operator):
                assert session.warm_up is not None
                yield LaterRow(window_group(group), width * session.warm_up.frames)
            else:
                yield LaterRow(group, width * frames)

    def _is_in_window(self, session: OpenSession, frame: FrameInFlight, operator: Operator) -> bool:
        """Whether `frame` will run `operator` in a window, unless all frames before it are lost."""
        if session.warm_up is None or operator.kind is not OperatorKind.DENOISE:
            return False
        is_early = frame.ordinal < frame.changes.reset_at + session.warm_up.frames
        return is_early and session.is_cold(frame, operator.step)

    def _scheduled(self, row: Row, deadline_s: float) -> Row:
        """`row` with what it is to the scheduler: when it is due, and what it writes."""
        due_s = deadline_s - sum(self._scheduler.costs.seconds(*each) for each in row.later)
        return replace(row, due_s=due_s, writes=self._memory.num_writes(row))

    def _group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        return row_group(self._model, self._memory, spec, settings, operator)

    def _run(self, rows: Sequence[Row], now: float) -> Batch:
        failed = False
        try:
            views = self._memory.gather(rows)
            forward = self._model.forward(rows, views)
            assert forward.updates.keys() == views.keys(), "a model leaves something to each memory it reads"
            self._memory.scatter(rows, forward.updates)
        except Exception:  # The edge of a batch: what fails here ends frames, never the engine.
            logger.exception("forward of %d rows of %s failed", len(rows), rows[0].operator.name)
            self._fail(rows)
            failed = True
        else:
            self._commit(rows, forward, now)
        return Batch(rows[0].operator.kind, len(rows), self._clock() - now, failed)

    def _commit(self, rows: Sequence[Row], forward: Forward, started_s: float) -> None:
        finished_s = self._clock()
        samples = sum(len(row.frames) for row in rows)
        assert len(forward.outputs) == samples, f"{len(forward.outputs)} outputs of {samples} samples"
        outputs = iter(forward.outputs)
        for row in rows:
            session, left = self._sessions[row.session_id], list(islice(outputs, len(row.frames)))
            if row.window:
                assert session.warm_up is not None
                session.warm_up.step(row.operator.step).warmed_up(row.frame, shadow=row.shadow)
            if row.shadow:  # Its pictures are those of frames that have gone on.
                continue
            for frame, planes in zip(row.frames, left, strict=True):
                if session.frames.get(frame.ordinal) is frame:
                    self._hand_over(session, frame, planes, started_s, finished_s)

    def _hand_over(
        self,
        session: OpenSession,
        frame: FrameInFlight,
        planes: Mapping[str, Tensor],
        started_s: float,
        finished_s: float,
    ) -> None:
        operator = frame.operator
        frame.failures = 0
        frame.queue_s += started_s - frame.ready_s
        frame.compute_s += finished_s - started_s
        frame.ready_s = finished_s
        if operator.kind is OperatorKind.DENOISE:
            last = session.committed.get(operator.step, -1)
            assert frame.ordinal > last, f"step {operator.step}: {frame.ordinal} after {last}"
            session.committed[operator.step] = frame.ordinal
            if session.warm_up is not None:
                session.warm_up.step(operator.step).keep(replace(frame))
        frame.planes = planes
        frame.position += 1
        self._emit_if_done(session, frame)

    def _fail(self, rows: Sequence[Row]) -> None:
        for row in rows:
            session = self._sessions[row.session_id]
            if row.shadow:
                self._fail_shadow(session, row)
                continue
            for frame in session.own(row.frames):
                frame.failures += 1
                if frame.failures >= MAX_FAILURES:
                    frame.planes = None
                    self._emit_if_done(session, frame)

    def _fail_shadow(self, session: OpenSession, row: Row) -> None:
        assert session.warm_up is not None
        state = session.warm_up.step(row.operator.step)
        for frame in state.inputs:
            frame.failures += 1
        if state.inputs[-1].failures >= MAX_FAILURES:
            logger.error("%s was not warmed up anew: the old cache is kept", row.operator.name)
            state.warmed_up(row.frame, shadow=True)

    def _emit_if_done(self, session: OpenSession, frame: FrameInFlight) -> None:
        if not frame.done:
            return
        del session.frames[frame.ordinal]
        emission = frame.came.left(frame.planes, Timing(self.span.name, frame.queue_s, frame.compute_s))
        session.retained[frame.ordinal] = emission
        if len(session.retained) > RETAINED_OUTPUTS:
            session.retained.popitem(last=False)
        self._emissions.append(emission)
