"""The sessions of one ingress: who feeds which, and how long one stays that nobody feeds."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rearview.config import TenantConfig
from rearview.errors import InvalidRequest, NotFound, RearviewError, Reason, StreamEnded
from rearview.ingress.session import IngressSession
from rearview.telemetry.logging import concerns

__all__ = ["Feeder", "Record", "Sessions"]


class Feeder(Protocol):
    """A stream, as the table sees it."""

    def end(self, error: RearviewError) -> None:
        """The session is over, or another stream feeds it now."""


@dataclass(slots=True)
class Record:
    """A session and the stream that feeds it."""

    session: IngressSession
    open_time_s: float
    """Wall clock."""
    stream: Feeder | None = None
    """Who feeds it now; None: its connection was lost."""
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)


class Sessions:
    """The table of sessions. For one event loop."""

    def __init__(
        self,
        grace_s: float,
        *,
        on_closed: Callable[[IngressSession], None],
        on_fed: Callable[[IngressSession], None],
        on_unfed: Callable[[IngressSession], None],
    ) -> None:
        """`grace_s`: how long a session stays that nobody feeds. `on_closed`: let go of what it held.

        `on_fed`, `on_unfed`: a stream feeds the session again, or none does any more.
        """
        self._grace_s = grace_s
        self._on_closed, self._on_fed, self._on_unfed = on_closed, on_fed, on_unfed
        self._records: dict[str, Record] = {}
        self._unfed = asyncio.Event()
        """Set while no stream feeds a session."""
        self._unfed.set()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._records

    def __iter__(self) -> Iterator[Record]:
        """Every one; they may be closed meanwhile."""
        return iter(tuple(self._records.values()))

    def __getitem__(self, session_id: str) -> Record:
        return self._records[session_id]

    def get(self, session_id: str) -> Record | None:
        """The session; None if it is not, or no longer, fed here."""
        return self._records.get(session_id)

    def standing(self) -> Mapping[tuple[str, ...], int]:
        """How many there are, by tenant and by what they do. For any thread."""
        return Counter((each.session.tenant.name, _does(each)) for each in tuple(self._records.values()))

    def find(self, tenant: TenantConfig, session_id: str) -> Record:
        """A session of the tenant. Raises NotFound."""
        record = self._records.get(session_id)
        if record is None or record.session.tenant.name != tenant.name:
            raise NotFound(Reason.SESSION_UNKNOWN, "there is no such session")
        return record

    def of(self, tenant: TenantConfig) -> list[Record]:
        """The tenant's sessions, oldest first."""
        mine = (r for r in self._records.values() if r.session.tenant.name == tenant.name)
        return sorted(mine, key=lambda r: (r.open_time_s, r.session.spec.session_id))

    def add(self, record: Record) -> None:
        """A session has begun. Unless a stream feeds it, it stays for the grace time."""
        assert record.session.spec.session_id not in self._records, "a session is opened twice"
        self._records[record.session.spec.session_id] = record
        self.detach(record, None)

    def attach(self, record: Record, stream: Feeder) -> None:
        """`stream` feeds the session from now on; the one that did before ends. For the stream's task."""
        concerns(session_id=record.session.spec.session_id)
        if record.stream is not None:
            record.stream.end(StreamEnded(Reason.TAKEN_OVER, "another stream has resumed the session"))
        record.stream = stream
        self._unfed.clear()
        if record.expiry is not None:
            self._expire_no_more(record)
            self._on_fed(record.session)

    def detach(self, record: Record, stream: Feeder | None) -> None:
        """The connection is lost: keep the session for the grace time."""
        if record.stream is not stream or record.session.spec.session_id not in self._records:
            return
        record.stream = None
        self._note_unfed()
        closed = StreamEnded(Reason.SESSION_UNKNOWN, "the grace time is over")
        record.expiry = asyncio.get_running_loop().call_later(self._grace_s, self.close, record, closed)
        self._on_unfed(record.session)

    def close(self, record: Record, why: RearviewError) -> None:
        """End a session and all that it holds. Idempotent."""
        session = record.session
        if self._records.pop(session.spec.session_id, None) is None:
            return
        self._expire_no_more(record)
        if why.reason is Reason.TAKEN_OVER:
            session.outcomes.leave()
        session.end()
        if record.stream is not None:
            record.stream.end(why)
        self._note_unfed()
        self._on_closed(session)

    def close_all(self, why: RearviewError) -> None:
        """End every session."""
        for record in self:
            self.close(record, why)

    def revoke(self, known: Container[str]) -> None:
        """End the sessions of tenants that are not `known` any more, whether they are fed or not."""
        revoked = InvalidRequest(Reason.TOKEN_REVOKED, "the tenant is no longer known")
        for record in self:
            if record.session.tenant.name not in known:
                self.close(record, revoked)

    def evict(self, tenant: str, for_slots: bool) -> tuple[str, ...] | None:
        """End the session of the tenant that nobody has fed for longest, to make room for another of its own;
        `for_slots`: one that has a lane. Returns the replicas of its lane; None if there is no such session.
        """
        mine = (r for r in self._records.values() if r.session.tenant.name == tenant)
        wanted = (r for r in mine if r.session.feed.is_attached or not for_slots)
        detached = [(r.expiry.when(), r) for r in wanted if r.expiry is not None]
        if not detached:
            return None
        _, oldest = min(detached, key=lambda pair: pair[0])
        had_lane = oldest.session.feed.is_attached
        self.close(oldest, StreamEnded(Reason.SESSION_UNKNOWN, "the tenant's next session took its place"))
        return oldest.session.lane.replicas if had_lane else ()

    async def wait_until_unfed(self, timeout_s: float) -> None:
        """Return when no stream feeds a session, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._unfed.wait()

    def _note_unfed(self) -> None:
        if all(record.stream is None for record in self._records.values()):
            self._unfed.set()

    def _expire_no_more(self, record: Record) -> None:
        if record.expiry is not None:
            record.expiry.cancel()
            record.expiry = None


def _does(record: Record) -> str:
    session = record.session
    if session.past.is_parked:
        return "parked"
    if not session.gate.is_open:
        return "moving"
    return "detached" if record.stream is None else "streaming"
