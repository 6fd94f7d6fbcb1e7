"""`Engine.step()`: choose rows → gather their memory → one forward → scatter → emit.

An engine owns one span of the chain: weights (`Model`), the sessions' pasts (`Memories`) and the frames in
flight. The whole chain in one engine is the local service; one engine per span, joined by links, is the
distributed one, and both run this same `step`. `ready.py` says which rows may run, `scheduler.py` which of
them do. What surprises: a forward changes nothing. Memory, `committed` and the frame's planes change together
afterwards, so a row that failed before can run again, and one that was committed never does.

Not thread-safe: one thread owns an engine, and nothing of it is global: who gives up that thread has given up
all of it. `now` and `clock` are seconds on one monotonic clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from torch import Tensor

from rearview.contract.chain import Span
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.failures import is_sticky
from rearview.engine.forwards import Forwards
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.export import Chunk
from rearview.engine.networks.model import Forward, Model
from rearview.engine.ready import Order, ReadyRule
from rearview.engine.ready_rows import ReadyRows
from rearview.engine.retained import RETAINED_BYTES, Retention
from rearview.engine.rows import MAX_FAILURES, Batch, FrameInFlight, Row, Running, StepResult
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.sessions import Session, SessionState, Standing, begun_at, new_session
from rearview.engine.unseen import leaves_nothing
from rearview.failpoints import reach

__all__ = ["Engine", "Order"]

logger = logging.getLogger(__name__)


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
        retained_bytes: int = RETAINED_BYTES,
        kernels: str = "",
    ) -> None:
        """`retained_bytes`: of outputs that are kept per session until they are acknowledged. `kernels`: what
        its networks compute with, in few characters.
        """
        self.span, self.frame_cost, self.kernels = span, scheduler.costs.frame, kernels
        self._model, self._memory, self._scheduler = model, memory, scheduler
        self._order = order
        self._ready = ReadyRows(ReadyRule(model, memory, scheduler.costs, order))
        self._clock, self.retained = clock, Retention(span, retained_bytes)
        self._sessions: dict[str, Session] = {}
        self._emissions: list[Frame[Tensor]] = []
        self._forwards = Forwards(model, memory, scheduler)

    def open(self, spec: SessionSpec) -> None:
        """Take a slot. Raises Refused(NO_CAPACITY), and then nothing has changed."""
        assert spec.session_id not in self._sessions, "session is already open"
        self._memory.allocate(spec)
        self._sessions[spec.session_id] = new_session(spec, self.span, self._memory, self.retained.open(spec))
        self._prepare(spec.settings)

    def close(self, session_id: str) -> None:
        """Forget the session and what it holds, frames in flight included. Unknown ones are ignored."""
        if self._sessions.pop(session_id, None) is not None:
            self._ready.closed(session_id)
            self.retained.close(session_id)
            self._memory.free(session_id)
            # A session that opens again under this id must not answer for this one.
            self._emissions = [left for left in self._emissions if left.session_id != session_id]

    def freeze(self, session_id: str, ordinal: int = -1) -> int:
        """Run frames up to an ordinal and hold later ones; returns it. It is `ordinal` or a later one: frames
        that have come in run, and so does the rest of a warm-up window, which then has to come. What comes or
        is lost meanwhile may move it: freeze again to know. Engines in a row are frozen at the latest ordinal
        that any of them names. Raises KeyError for an unknown session.
        """
        session = self._sessions[session_id]
        session.freeze(ordinal)
        self._let_in(session, self._clock())
        return session.freeze(ordinal)

    def frozen_at(self, session_id: str) -> int | None:
        """The last ordinal that may run; None: the session is not frozen."""
        return self._sessions[session_id].flight.frozen_at

    def is_quiet(self, session_id: str) -> bool:
        """Whether the session is frozen, and its frames up to there have committed and left."""
        waiting = any(left.session_id == session_id for left in self._emissions)
        return self._sessions[session_id].is_quiet and not waiting

    def past_bytes(self, session_id: str) -> int:
        """What the session remembers, bytes. Raises KeyError for an unknown session."""
        return self._memory.bytes_per_session(self._sessions[session_id].spec)

    def thaw(self, session_id: str) -> None:
        """Let in what was held. Unknown sessions are ignored."""
        if session_id in self._sessions:
            self._sessions[session_id].flight.frozen_at = None
            self._let_in(self._sessions[session_id], self._clock())

    def export(self, session_id: str) -> SessionState:
        """What the session is; a copy. None of its frames may be in flight: `freeze` it before."""
        return self._sessions[session_id].export(tuple(self._memory.export(session_id)))

    def import_(self, state: SessionState) -> None:
        """Open a session that was exported from an engine whose span has these steps, or `joined` from
        several. Raises Refused(NO_CAPACITY), and ValueError if it does not fit; nothing has changed then.
        """
        self._resume(state, [chunk for chunk in state.memory if chunk.kind in self._memory.names])

    def open_at(self, spec: SessionSpec, ordinal: int, settings: Mapping[int, Settings]) -> None:
        """Open a session that begins at `ordinal`, with an empty past. `settings`: by version, the lowest is
        that of the frame at `ordinal`. Raises as `open` does.
        """
        warm_up_frames = self._memory.warm_up_frames(spec)
        self._resume(begun_at(spec, self.span, warm_up_frames, ordinal, settings), None)

    def update(self, session_id: str, version: int, settings: Settings) -> None:
        """Frames admitted with `version` from now on are translated under `settings`. Those of a size for
        which the session has no room are lost.
        """
        session = self._sessions.get(session_id)
        if session is not None and session.takes(version, settings, self._memory):
            self._prepare(settings)

    def flush(self, session_id: str) -> None:
        """No frame will follow: what stream-batch order holds back may run."""
        if session_id in self._sessions:
            self._sessions[session_id].flushing = True
            self._ready.changed(self._sessions[session_id])

    def standing(self, session_id: str) -> Standing | None:
        """Where the session stands, for whoever adopts it; None: there is no such session."""
        session = self._sessions.get(session_id)
        return None if session is None else session.standing

    def admit(self, frame: Frame[Tensor], now: float) -> bool:
        """Let a frame in; frames may arrive in any order. False: there is no such session (any more). A frame
        that was let in before is not run again: if its output is still retained it is sent again.
        """
        session = self._sessions.get(frame.session_id)
        if session is None:
            return False
        if frame.ordinal >= session.expected:
            session.flight.early[frame.ordinal] = frame
            self._let_in(session, now)
        elif (retained := session.flight.retained.get(frame.ordinal)) is not None:
            self._emissions.append(retained)
        return True

    def renew(self, costs: CostTable, kernels: str) -> None:
        """Its networks compute with other `kernels` from now on, at other costs. There must be no session:
        none is to have pictures of both.
        """
        assert not self._sessions, f"{len(self._sessions)} sessions would have pictures of both"
        self._scheduler.costs, self.frame_cost, self.kernels = costs, costs.frame, kernels
        self._ready = ReadyRows(ReadyRule(self._model, self._memory, costs, self._order))
        self._forwards = Forwards(self._model, self._memory, self._scheduler)

    @property
    def running(self) -> Running | None:
        """The forward under way. The only thing of an engine that other threads may read."""
        return self._forwards.running

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._emissions) or bool(self._ready.queues)

    @property
    def free_slots(self) -> int:
        """Sessions that still fit."""
        return self._memory.free_slots

    @property
    def sessions(self) -> Sequence[str]:
        """Ids of the open sessions."""
        return tuple(self._sessions)

    def step(self, now: float) -> StepResult:
        """Run one batch of ready rows; returns every frame that has left the span since the last call. Raises
        only what no later call would survive: an error for which the device must be started anew.
        """
        rows = self._scheduler.choose(self._ready.queues, now)
        age_s = self._ready.take(rows, now)
        batch = self._run(rows, now) if rows else None
        emissions, self._emissions = self._emissions, []
        return StepResult(emissions, batch, age_s, self.retained.take_forgotten())

    def check_integrity(self) -> None:
        """Assert what must hold between steps."""
        self._memory.check_integrity()
        self._ready.check_integrity(self._sessions.values())
        for session in self._sessions.values():
            session.check_integrity()

    def _prepare(self, settings: Settings) -> None:
        try:
            self._model.prepare(settings)
        except Exception as error:  # It only saves time: if it fails again in a forward, frames end there.
            if is_sticky(error):
                raise
            logger.exception("settings could not be prepared")

    def _resume(self, state: SessionState, past: Sequence[Chunk] | None) -> None:
        spec = state.spec
        assert spec.session_id not in self._sessions, "session is already open"
        self._memory.allocate(spec)
        session = new_session(spec, self.span, self._memory, self.retained.open(spec))
        try:
            for under in state.settings.values():
                self._memory.check_fits(spec, spec.size_under(under))
            session.resume(state)
            if past is not None:
                self._memory.import_(spec.session_id, past)
        except BaseException:
            self._memory.free(spec.session_id)
            self.retained.close(spec.session_id)
            raise
        self._sessions[spec.session_id] = session
        self._ready.changed(session)
        for settings in session.settings.values():
            self._prepare(settings)

    def _let_in(self, session: Session, now: float) -> None:
        self._ready.changed(session)
        for frame in session.let_in(now):
            if frame.is_unseen and leaves_nothing(frame, session, self._memory):
                frame.passes()
            self._emit_if_done(session, frame)

    def _run(self, rows: Sequence[Row], now: float) -> Batch:
        outcome = self._forwards.run(rows, now)
        kind = rows[0].operator.kind
        if outcome.forward is None:
            self._fail(outcome.blamed)
            return Batch(kind, len(rows), self._clock() - now, outcome.failure)
        self._commit(rows, outcome.forward, now)
        reach("engine.commit.after")
        how = outcome.forward.is_accelerated, outcome.forward.is_fallback
        return Batch(kind, len(rows), self._clock() - now, None, *how)

    def _commit(self, rows: Sequence[Row], forward: Forward, started_s: float) -> None:
        finished_s = self._clock()
        outputs, samples = iter(forward.outputs), sum(row.width for row in rows)
        for row in rows:
            session = self._sessions[row.session_id]
            session.windows.committed(row)
            for frame, planes in zip(row.frames, islice(outputs, len(row.frames)), strict=True):
                if session.is_own(frame):  # Else it fills a window, and its picture is that of another frame.
                    frame.ran(started_s, finished_s, row.width / len(row.frames) / samples, len(rows))
                    session.commit(frame, planes)
                    self._emit_if_done(session, frame)

    def _fail(self, rows: Sequence[Row]) -> None:
        for row in rows:
            session = self._sessions[row.session_id]
            session.windows.failed(row)
            for frame in row.frames:
                if session.is_own(frame):
                    frame.failures += 1
                    if frame.failures >= MAX_FAILURES:
                        frame.planes = None
                        self._emit_if_done(session, frame)

    def _emit_if_done(self, session: Session, frame: FrameInFlight) -> None:
        if not frame.done:
            return
        del session.frames[frame.ordinal]
        emission = frame.came.left(frame.carries, frame.timing(self.span.name))
        session.flight.retained.keep(emission)
        self._emissions.append(emission)
        if emission.is_lost:  # A window may end later for it: frames that are held are then part of it.
            self._let_in(session, frame.ready_s)
