"""The rows that may run, kept up by change: a step costs what changed, however many sessions are open.

The ready rule is asked again only about sessions that have changed since; a row that still holds stays where
it is. What surprises: nobody finds a change here. Whoever changes a session has to name it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rearview.contract.chain import Operator
from rearview.engine.queues import RowQueues
from rearview.engine.ready import ReadyRule
from rearview.engine.rows import FrameInFlight, Row
from rearview.engine.sessions import Session
from rearview.engine.windows import Turn

__all__ = ["ReadyRows"]


class ReadyRows:
    """The rows of all sessions that may run. Whoever changes a session says so."""

    def __init__(self, rule: ReadyRule) -> None:
        self._rule, self._queues = rule, RowQueues()
        self._rows: dict[str, dict[int, Row]] = {}
        """By session, then by identity of the frame that a row ends with: a frame ends one row at most."""
        self._sessions: dict[str, Session] = {}
        """Those of `_rows`."""
        self._changed: dict[str, Session] = {}

    @property
    def queues(self) -> RowQueues:
        """They are of now, until a session changes."""
        while self._changed:
            _, session = self._changed.popitem()
            self._renew(session)
        return self._queues

    def changed(self, session: Session) -> None:
        """Frames came, went or moved on, or may do so, or what holds them back did."""
        self._changed[session.spec.session_id] = session

    def closed(self, session_id: str) -> None:
        """The session is gone, and its rows with it."""
        self._changed.pop(session_id, None)
        self._sessions.pop(session_id, None)
        for row in self._rows.pop(session_id, {}).values():
            self._queues.remove(row)

    def take(self, rows: Sequence[Row], now: float) -> float:
        """These are run before anybody asks again, which changes their sessions. Returns how long the oldest
        of the others has waited; 0 with none.
        """
        for row in rows:
            self._queues.remove(row)
            del self._rows[row.session_id][id(row.frame)]
            self._changed[row.session_id] = self._sessions[row.session_id]
        oldest_s = self._queues.oldest_s
        return 0.0 if oldest_s is None else now - oldest_s

    def check_integrity(self, sessions: Collection[Session]) -> None:
        """Assert that no session has changed without a word, and that every row waits once."""
        assert len(self.queues) == sum(map(len, self._rows.values())), "a row waits that no session has"
        assert self._rows.keys() <= {session.spec.session_id for session in sessions}, "rows of a closed one"
        for session in sessions:
            kept = self._rows.get(session.spec.session_id, {}).values()
            expected = [_looks(turn.frames, turn.operator) for turn in self._rule.turns(session)]
            assert [_looks(row.frames, row.operator) for row in kept] == expected, "a change was not told"

    def _renew(self, session: Session) -> None:
        """A row that still holds stays where it is."""
        before, after = self._rows.get(session.spec.session_id, {}), {}
        for turn in self._rule.turns(session):
            key = id(turn.frames[-1])
            row = before.get(key)
            if row is None or not self._still_holds(row, session, turn):
                row = self._rule.row(session, turn)
            after[key] = row
        for key, row in before.items():
            if after.get(key) is not row:
                self._queues.remove(row)
        for key, row in after.items():
            if before.get(key) is not row:
                self._queues.add(row)
        self._rows[session.spec.session_id] = after
        self._sessions[session.spec.session_id] = session

    def _still_holds(self, row: Row, session: Session, turn: Turn) -> bool:
        is_same = row.operator is turn.operator and not row.warms_up and not row.frame.failures
        return is_same and self._rule.is_alone(session, turn)


def _looks(frames: Sequence[FrameInFlight], operator: Operator) -> tuple[str, list[int]]:
    return operator.name, [frame.ordinal for frame in frames]
