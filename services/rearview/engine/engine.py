"""`Engine.step()`: choose rows → gather their memory → one forward → scatter → emit.

An engine owns one span of the chain: weights (`Model`), the sessions' pasts (`TemporalMemory`) and the
frames in flight. The whole chain in one engine is the local service; one engine per span, joined by
links, is the distributed one, and both run this same `step`. What surprises: a forward changes nothing.
Memory, `committed` and the frame's payload change together in `_commit`, so a row that failed before it
can run again, and one that was committed never does.

Not thread-safe: one thread owns an engine. `now` and `clock` are seconds on one monotonic clock.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from rearview.engine.chain import OperatorKind, Span
from rearview.engine.memory.protocol import TemporalMemory
from rearview.engine.model import Forward, Model
from rearview.engine.rows import Frame, FrameInput, LaterRow, Row, SpanTiming, row_width
from rearview.engine.scheduler import Scheduler
from rearview.engine.session import SessionSpec, Settings

__all__ = ["Batch", "Emission", "Engine", "Order", "StepResult"]

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
class Emission:
    """A frame that leaves the span."""

    session_id: str
    ordinal: int
    settings_version: int
    payload: Tensor | None
    """What the next span takes, on the CPU. None: dropped, here or upstream."""
    deadline_s: float
    timing: SpanTiming


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

    emissions: Sequence[Emission]
    batch: Batch | None
    """None: no row was ready."""
    queue_age_s: float = 0.0
    """How long the oldest row has waited that was ready and not chosen; 0 with none."""


@dataclass(slots=True)
class _Session:
    spec: SessionSpec
    settings: dict[int, Settings]
    expected: int = 0
    """The next ordinal to let in."""
    early: dict[int, FrameInput] = field(default_factory=dict)
    """Arrived before an earlier ordinal did."""
    frames: OrderedDict[int, Frame] = field(default_factory=OrderedDict)
    """In flight here, by ordinal."""
    committed: dict[int, int] = field(default_factory=dict)
    """Denoising step to the last ordinal that committed it."""
    retained: OrderedDict[int, Emission] = field(default_factory=OrderedDict)
    flushing: bool = False


class Engine:
    """The rows of many sessions through one span."""

    def __init__(
        self,
        span: Span,
        model: Model,
        memory: TemporalMemory,
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
        self._sessions: dict[str, _Session] = {}
        self._emissions: list[Emission] = []

    def open(self, spec: SessionSpec) -> None:
        """Take a slot. Raises Refused(NO_CAPACITY), and then nothing has changed."""
        assert spec.session_id not in self._sessions, "session is already open"
        self._memory.allocate(spec)
        self._sessions[spec.session_id] = _Session(spec, {0: spec.settings})
        self._prepare(spec.settings)

    def close(self, session_id: str) -> None:
        """Forget the session and what it holds, frames in flight included. Unknown ones are ignored."""
        if self._sessions.pop(session_id, None) is not None:
            self._memory.free(session_id)
            # A session that opens again under this id must not answer for this one.
            self._emissions = [left for left in self._emissions if left.session_id != session_id]

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

    def admit(self, frame: FrameInput, now: float) -> bool:
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

    def _prepare(self, settings: Settings) -> None:
        try:
            self._model.prepare(settings)
        except Exception:  # It only saves time: if it fails again in a forward, frames end there.
            logger.exception("settings could not be prepared")

    def _enter(self, session: _Session, entering: FrameInput, now: float) -> None:
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
        session.frames[frame.ordinal] = frame
        self._emit_if_done(session, frame)

    def _frame(self, spec: SessionSpec, entering: FrameInput, known: Settings | None, now: float) -> Frame:
        settings = known or spec.settings
        return Frame(
            spec=spec,
            ordinal=entering.ordinal,
            settings=settings,
            settings_version=entering.settings_version,
            payload=None if known is None else entering.payload,
            deadline_s=entering.deadline_s,
            operators=tuple(
                operator
                for operator in self.span.operators
                if operator.kind is not OperatorKind.DENOISE or operator.step < settings.steps
            ),
            ready_s=now,
        )

    def _ready(self) -> Iterator[Row]:
        """The ready rule: (n, k) waits until no earlier ordinal in flight has step k before it."""
        for session in self._sessions.values():
            steps_before: set[int] = set()
            for frame in session.frames.values():
                operator = frame.operator
                denoises = operator.kind is OperatorKind.DENOISE
                if not (denoises and operator.step in steps_before) and not self._held_back(session, frame):
                    yield self._row(frame)
                steps_before.update(frame.remaining_steps())

    def _held_back(self, session: _Session, frame: Frame) -> bool:
        """In stream-batch order step k of frame n waits until frame n + k is encoded: they share forwards."""
        if self._order is Order.BACK_TO_BACK or session.flushing:
            return False
        newest = session.frames.get(frame.ordinal + frame.operator.step)
        if newest is None:  # It has not come yet, or it has left.
            return session.expected <= frame.ordinal + frame.operator.step
        return newest.operator.kind is OperatorKind.ENCODE and frame.operator.kind is OperatorKind.DENOISE

    def _row(self, frame: Frame) -> Row:
        group = self._model.group(frame.spec, frame.settings, frame.operator)
        later = tuple(
            LaterRow(
                self._model.group(frame.spec, frame.settings, operator), row_width(operator, frame.settings)
            )
            for operator in frame.operators[frame.position + 1 :]
        )
        due_s = frame.deadline_s - sum(self._scheduler.costs.seconds(*each) for each in later)
        row = Row(frame, frame.operator, group, due_s, later=later)
        if frame.operator.kind is not OperatorKind.DENOISE or not self._memory.write_due(row):
            return row
        return Row(frame, frame.operator, group, due_s, write_due=True, later=later)

    def _run(self, rows: Sequence[Row], now: float) -> Batch:
        failed = False
        try:
            forward = self._model.forward(rows, self._memory.gather(rows))
        except Exception:  # The edge of a batch: what fails here ends frames, never the engine.
            logger.exception("forward of %d rows of %s failed", len(rows), rows[0].operator.name)
            self._fail(rows)
            failed = True
        else:
            self._commit(rows, forward, now)
        return Batch(rows[0].operator.kind, len(rows), self._clock() - now, failed)

    def _commit(self, rows: Sequence[Row], forward: Forward, started_s: float) -> None:
        self._memory.scatter(rows, forward.update)
        finished_s = self._clock()
        for row, output in zip(rows, forward.outputs, strict=True):
            session, frame = self._sessions[row.session_id], row.frame
            if row.operator.kind is OperatorKind.DENOISE:
                last = session.committed.get(row.operator.step, -1)
                assert row.ordinal > last, f"step {row.operator.step}: {row.ordinal} after {last}"
                session.committed[row.operator.step] = row.ordinal
            frame.payload = output
            frame.position += 1
            frame.failures = 0
            frame.queue_s += started_s - frame.ready_s
            frame.compute_s += finished_s - started_s
            frame.ready_s = finished_s
            self._emit_if_done(session, frame)

    def _fail(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.frame.failures += 1
            if row.frame.failures >= MAX_FAILURES:
                row.frame.payload = None
                self._emit_if_done(self._sessions[row.session_id], row.frame)

    def _emit_if_done(self, session: _Session, frame: Frame) -> None:
        if not frame.done:
            return
        del session.frames[frame.ordinal]
        emission = Emission(
            session.spec.session_id,
            frame.ordinal,
            frame.settings_version,
            frame.payload,
            frame.deadline_s,
            SpanTiming(self.span.name, frame.queue_s, frame.compute_s),
        )
        session.retained[frame.ordinal] = emission
        if len(session.retained) > RETAINED_OUTPUTS:
            session.retained.popitem(last=False)
        self._emissions.append(emission)
