"""Sessions that leave a full replica for an emptier one while both run, now and then.

Every ingress decides about its own sessions, by `control/rebalance.py`. It does so while it holds one claim,
from what replicas and leases say after it got it: so there is one such move at a time in the whole service,
and two ingresses never answer the same imbalance.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from rearview.control.placement import Asked
from rearview.control.rebalance import Movable, Shift
from rearview.directory.protocol import Claims
from rearview.errors import RearviewError
from rearview.ingress.choosing import Choosing
from rearview.ingress.lane import Lane
from rearview.ingress.moves import Moves
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Sessions
from rearview.ingress.tasks import SessionTasks

__all__ = ["Rebalancing"]

logger = logging.getLogger(__name__)

CLAIM = "rebalance"
CLAIM_S = 30.0
"""Longer than a move takes. An ingress that dies in the middle of one delays the next by so much."""


class Rebalancing:
    """Of one ingress. For one event loop."""

    def __init__(
        self,
        claims: Claims,
        ingress_id: str,
        choosing: Choosing,
        moves: Moves,
        sessions: Sessions,
        refresh: Callable[[], Awaitable[None]],
        every_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sessions`: those that this ingress feeds. `refresh` asks the replicas who they are. `every_s`: how
        often to look; None: never.
        """
        self._claims, self._id, self._every_s = claims, ingress_id, every_s
        self._choosing, self._moves = choosing, moves
        self._sessions, self._refresh, self._clock = sessions, refresh, clock
        self._moved_s: dict[str, float] = {}
        self._tasks = SessionTasks()

    async def run(self) -> None:
        """Look for ever, if the deployment wants it."""
        while self._every_s is not None:
            await asyncio.sleep(self._every_s)
            try:
                await self.look()
            except RearviewError as error:
                logger.info("nothing is rebalanced: %s", error.message)

    async def look(self) -> bool:
        """Move one session if that is worth it; returns whether one was to move. Raises RearviewError."""
        if await self._decide() is None:
            return False
        claim = await self._claims.claim(CLAIM, self._id, CLAIM_S)
        if claim.owner != self._id:
            return False
        try:
            await self._refresh()
            shift = await self._decide()
            if shift is not None:
                await self._perform(shift)
            return shift is not None
        finally:
            await self._claims.drop_claim(claim)

    def forget(self, session: IngressSession) -> None:
        """The session has ended, or has lost its lane: there is nothing to move."""
        self._tasks.cancel(session)

    async def stop(self) -> None:
        """Give everything up."""
        await self._tasks.stop()

    async def _decide(self) -> Shift | None:
        every = (record.session for record in self._sessions)
        here = {each.spec.session_id: each for each in every if each.feed.is_attached}
        self._moved_s = {each: at for each, at in self._moved_s.items() if each in here}
        movable = [self._movable(session) for session in here.values()]
        return await self._choosing.to_shift(movable, self._clock())

    def _movable(self, session: IngressSession) -> Movable:
        spec, load = session.spec, session.lease.load
        moved_s = self._moved_s.get(spec.session_id, float("-inf"))
        asked = Asked.of(spec, load, session.settings)
        return Movable(spec.session_id, session.lane.replicas, asked, moved_s)

    async def _perform(self, shift: Shift) -> None:
        session = self._sessions[shift.session_id].session
        self._moved_s[shift.session_id] = self._clock()
        await asyncio.wait([self._tasks.start(session, self._move(session, session.lane, shift))])

    async def _move(self, session: IngressSession, lane: Lane, shift: Shift) -> None:
        try:
            await self._moves.move(session, lane, shift.lane)
        except (RearviewError, TimeoutError) as error:
            logger.info("a session stays: %s", getattr(error, "message", type(error).__name__))
