"""How many replicas each span is to have, as one ingress sees it, and what that asks of its sessions.

Serve orders and stops replicas, by the same function of the same reports (`control/reports.py`), and gives up
only what is empty. Every ingress decides as Serve's policy does, so that metrics are there and any of them
can lead. The leader says which replicas are emptied (`emptying.py`), and each ingress moves its own sessions
off them, one at a time, to where there are slots and time. A session that finds none stays until there is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from rearview.config import ServiceConfig
from rearview.contract.events import Events, ReplicasWanted
from rearview.control.reports import BEGIN, Report, Standing, figures_of, scale
from rearview.control.scaling import Decision
from rearview.errors import RearviewError
from rearview.ingress.choosing import Choosing
from rearview.ingress.describing import Description
from rearview.ingress.emptying import Emptying
from rearview.ingress.lane import Lane
from rearview.ingress.moves import Moves
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Sessions
from rearview.ingress.tasks import SessionTasks

__all__ = ["Scaling"]

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""How often an ingress looks."""


class Scaling:
    """Of one ingress. For one event loop."""

    def __init__(
        self,
        config: ServiceConfig,
        emptying: Emptying,
        choosing: Choosing,
        moves: Moves,
        sessions: Sessions,
        described: Callable[[], Sequence[Description]],
        *,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sessions`: those that this ingress feeds. `described`: what replicas have last said."""
        spans = [span for span in config.spans if span.max_replicas is not None]
        self._figures = {span.name: figures_of(config, span) for span in spans}
        self._emptying, self._choosing, self._moves = emptying, choosing, moves
        self._sessions, self._described, self._events, self._clock = sessions, described, events, clock
        self._standing: dict[str, Standing] = {}
        self._tasks = SessionTasks()

    async def run(self) -> None:
        """Look for ever, if a span scales."""
        emptying: asyncio.Task[None] | None = None
        try:
            while self._figures:
                await asyncio.sleep(INTERVAL_S)
                try:
                    await self.look()
                except RearviewError as error:
                    logger.info("replicas that leave are not known anew: %s", error.message)
                if emptying is None or emptying.done():
                    emptying = asyncio.create_task(self.empty())
        finally:
            if emptying is not None:
                emptying.cancel()

    async def look(self) -> None:
        """Decide, and see which replicas leave. Raises DirectoryUnavailable."""
        described, now = self._described(), self._clock()
        decisions: dict[str, Decision] = {}
        for span, figures in self._figures.items():
            said = [each.get("report") for each in described if each["span"] == span]
            reports = [None if each is None else Report.of(each) for each in said]
            standing = self._standing.get(span, BEGIN)
            decisions[span], self._standing[span] = scale(reports, 0, figures, standing, now)
        await self._emptying.look({span: decision.wanted for span, decision in decisions.items()})
        for span, decision in decisions.items():
            of_span = {each["replica_id"] for each in described if each["span"] == span}
            leaving = len(of_span & self._emptying.leaving)
            self._events(ReplicasWanted(span, decision.wanted, leaving, decision.why))

    async def empty(self) -> None:
        """Move the sessions of this ingress off the replicas that leave, one after the other."""
        for record in tuple(self._sessions):
            session = record.session
            if self._is_leaving(session) and not self._tasks.runs(session):
                await asyncio.wait([self._tasks.start(session, self._move(session, session.lane))])

    def forget(self, session: IngressSession) -> None:
        """The session has ended, or has lost its lane: there is nothing to move."""
        self._tasks.cancel(session)

    async def stop(self) -> None:
        """Give everything up, and let another ingress lead."""
        await self._tasks.stop()
        await self._emptying.stop()

    def _is_leaving(self, session: IngressSession) -> bool:
        return session.feed.is_attached and not self._emptying.leaving.isdisjoint(session.lane.replicas)

    async def _move(self, session: IngressSession, lane: Lane) -> None:
        try:
            to = await self._choosing.to_leave(session.spec, session.lease, session.settings)
            await self._moves.move(session, lane, to)
        except (RearviewError, TimeoutError) as error:
            logger.info("a session stays: %s", getattr(error, "message", type(error).__name__))
