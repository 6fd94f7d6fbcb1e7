"""Planned moves: a session leaves its replicas while they still run, and misses nothing.

    hold ─> freeze ─> all that was sent comes back ─> open elsewhere ─> compare-and-set epoch ─> go on
               └──────────── fails: thaw, and go on where it is ──────────────┘

Frames that come meanwhile wait at the ingress. Before the compare-and-set the old lane serves if anything
fails; after it the old lane is fenced.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from rearview.contract.events import Events, SessionMoved
from rearview.contract.stream import Continuity
from rearview.errors import RearviewError, Reason, Refused
from rearview.ingress.checkpoints import Checkpoints
from rearview.ingress.freezing import Frozen, freeze, thaw
from rearview.ingress.lane import Lane
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.session import IngressSession
from rearview.ingress.tasks import SessionTasks

__all__ = ["Moves", "stand_still"]

logger = logging.getLogger(__name__)

AGAIN_S = 0.5
"""Between two tries to move a session off."""
OUT_LIMIT_S = 5.0
"""How long frames that were sent may take to come back."""


class Moves:
    """The planned moves of one ingress. For one event loop."""

    def __init__(
        self,
        lanes: Lanes,
        leases: Leases,
        checkpoints: Checkpoints,
        *,
        at_a_time: int,
        events: Events,
    ) -> None:
        self._lanes, self._leases = lanes, leases
        self._checkpoints, self._events = checkpoints, events
        self._places = asyncio.Semaphore(at_a_time)
        self._tasks = SessionTasks()

    def leave(self, session: IngressSession) -> None:
        """A replica of the session's lane is to be left: move it off, and try until it is lost or gone."""
        if not self._tasks.runs(session):
            self._tasks.start(session, self._leave(session, session.lane))

    def forget(self, session: IngressSession) -> None:
        """The session has ended, or has lost its lane: there is nothing to move."""
        self._tasks.cancel(session)

    async def stop(self) -> None:
        """Give everything up."""
        await self._tasks.stop()

    async def _leave(self, session: IngressSession, lane: Lane) -> None:
        while session.lane is lane:
            try:
                async with self._places:
                    await self.move(session)
            except (RearviewError, TimeoutError) as error:
                logger.info("a session stays: %s", getattr(error, "message", type(error).__name__))
                await asyncio.sleep(AGAIN_S)

    async def move(self, session: IngressSession) -> None:
        """Move the session to other replicas. Raises RearviewError and TimeoutError; it then goes on where it
        is.
        """
        async with session.gate.standing_still:
            await self._move(session)

    async def _move(self, session: IngressSession) -> None:
        old, started_s = session.lane, time.monotonic()
        replicas = self._lanes.choose(await self._leases.sessions_by_replica())
        if replicas == old.replicas:
            raise Refused(Reason.NO_CAPACITY, "there is no other lane", retry_after_s=AGAIN_S)
        session.gate.hold()
        new: Lane | None = None
        try:
            frozen = await stand_still(session, old)
            begin = await self._begin(session, old, replicas, frozen)
            epoch = session.lease.epoch + 1
            new = await self._lanes.open(session.spec, epoch, replicas, begin)
            session.lease = await self._leases.move(session.lease, replicas)
            if session.lease.epoch != epoch:
                raise Refused(Reason.TAKEN_OVER, "the lease was moved meanwhile", retry_after_s=AGAIN_S)
        except BaseException:
            if new is not None:
                self._lanes.close(new)
            thaw(old)
            session.go_on()
            raise
        await session.resume(new, session.feed.inputs.following, Continuity.EXACT)
        self._lanes.close(old)
        self._events(SessionMoved(Continuity.EXACT, time.monotonic() - started_s, planned=True))

    async def _begin(
        self, session: IngressSession, old: Lane, replicas: tuple[str, ...], frozen: Frozen
    ) -> Mapping[str, Any]:
        """Where the new lane gets the session's state from: straight from the old one, unless they share a
        replica, which forgets what it had when it opens the session anew.
        """
        source = {"session_id": old.session_id, "epoch": old.epoch}
        if not set(replicas) & set(old.replicas):
            return {"state": {"sources": [{**source, "address": each} for each in old.addresses]}}
        checkpoint = await self._checkpoints.take(session, frozen, runs_on=False)
        session.keep(checkpoint, expects=session.past.expects_checkpoints)
        return {"state": {"sources": [{**source, "address": self._lanes.address}]}}


async def stand_still(session: IngressSession, lane: Lane) -> Frozen:
    """Freeze the lane of a session that is held, where nothing is on its way any more. Raises RearviewError
    and TimeoutError.
    """
    inputs = session.feed.inputs
    async with asyncio.timeout(OUT_LIMIT_S):
        while True:
            frozen = await freeze(lane, inputs.following - 1)
            if frozen.ordinal < inputs.following:
                await session.gate.wait(lambda: not session.feed.in_lane)
                return frozen
            thaw(lane)  # In the middle of a warm-up, whose other frames have to come first.
            session.go_on()
            await session.gate.wait(partial(inputs.reach, frozen.ordinal))
            session.gate.hold()
