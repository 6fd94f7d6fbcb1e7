"""The ready rule: which rows may run now.

Row (n, k) is ready when (n, k-1) is done and no earlier ordinal in flight still has step k before it. Encode
and decode keep no order, unless the session's memory needs it. Before a step whose cache is cold the first
frames wait for each other, and go on as one row; a shadow window comes before the frame that follows it
(`windows.py`). Nothing here changes anything: `ready_rows.py` keeps what was found until a session changes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from enum import Enum

from rearview.contract.chain import Operator, OperatorKind
from rearview.engine.course import LaterRow, Stage, bit_of
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Model, row_group
from rearview.engine.rows import FrameInFlight, Row, row_controls, row_width, window_group
from rearview.engine.scheduler import CostTable
from rearview.engine.sessions import Session
from rearview.engine.windows import Turn

__all__ = ["Order", "ReadyRule"]


class Order(Enum):
    """In which order a session's rows run. The pictures are the same."""

    BACK_TO_BACK = "back_to_back"
    """A frame runs its steps one after another: lowest latency."""
    STREAM_BATCH = "stream_batch"
    """A frame moves one step per arriving frame (StreamDiffusion): S-1 frame intervals of delay."""


class ReadyRule:
    """What makes rows of a session's frames."""

    def __init__(self, model: Model, memory: Memories, costs: CostTable, order: Order) -> None:
        self._model, self._memory, self._costs, self._order = model, memory, costs, order

    def turns(self, session: Session) -> Iterator[Turn]:
        """What may run: each becomes a row."""
        preceded = 0
        for turn in session.windows.before_all(session):
            yield turn
            preceded |= bit_of(turn.operator)
        for frame in session.frames.values():
            course, position = frame.course, frame.position
            if not course.bits[position] & preceded:
                found = session.windows.turn(frame, session)
                if found is not None and (found.warms_up or not self._is_held_back(session, frame)):
                    yield found
            preceded |= course.ahead[position]

    def row(self, session: Session, turn: Turn) -> Row:
        """The row of a turn."""
        last, known = turn.frames[-1], turn.frames[-1].course.stages
        stage = known.get(last.position) if self.is_alone(session, turn) else self._stage(session, turn)
        if stage is None:
            stage = known[last.position] = self._stage(session, turn)
        due_s, kind = last.deadline_s - stage.later_s, (turn.warms_up, turn.shadow)
        row = Row(turn.frames, last.operator, stage.group, due_s, 0, stage.later, *kind)
        row.writes = self._memory.num_writes(row)
        return row

    def is_alone(self, session: Session, turn: Turn) -> bool:
        """Whether nothing but its frame decides what the row is, now and as long as it waits."""
        return not turn.warms_up and session.windows.goes_alone(turn.frames[-1])

    def _is_held_back(self, session: Session, frame: FrameInFlight) -> bool:
        """In stream-batch order step k of frame n waits until frame n + k is encoded: they share forwards."""
        if self._order is Order.BACK_TO_BACK or session.flushes:
            return False
        newest = session.frames.get(frame.ordinal + frame.operator.step)
        if newest is None:  # It has not come yet, or it has left.
            return session.expected <= frame.ordinal + frame.operator.step
        return newest.operator.kind is OperatorKind.ENCODE and frame.operator.kind is OperatorKind.DENOISE

    def _stage(self, session: Session, turn: Turn) -> Stage:
        group, later = self._group(turn.frames[-1], turn.operator), tuple(self._later(session, turn))
        later_s = sum(self._costs.seconds(one.group, one.width, 0, one.controls) for one in later)
        return Stage(window_group(group) if turn.warms_up else group, later, later_s)

    def _later(self, session: Session, turn: Turn) -> Iterator[LaterRow]:
        """What is still before the frames of a row, or before the one that waits for a shadow window."""
        if turn.shadow and turn.waiting is None:
            return
        frame = turn.waiting or turn.frames[-1]
        together = 1 if turn.shadow else len(turn.frames)
        for operator in frame.remaining if turn.shadow else frame.remaining[1:]:
            group = self._group(frame, operator)
            width, controls = row_width(operator, frame.settings), row_controls(operator, frame.settings)
            if frames := session.windows.frames_at(frame, operator):
                yield LaterRow(window_group(group), width * frames, controls * frames)
            else:
                yield LaterRow(group, width * together, controls * together)

    def _group(self, frame: FrameInFlight, operator: Operator) -> Hashable:
        return row_group(self._model, self._memory, frame.spec, frame.settings, operator)
