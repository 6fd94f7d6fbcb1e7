"""Planned moves: a session leaves its replicas while they still run, and misses nothing.

    take an epoch ─> hold ─> freeze ─> all that was sent comes back ─> open elsewhere ─> set the lane ─> go on
                                └──────────── fails: thaw, and go on where it is ───────────┘

Frames that come meanwhile wait at the ingress. The epoch is taken first, by compare-and-set: nobody else
opens or adopts the session under it, and a move that is tried again has another one. What surprises: a
replica of both lanes forgets the old one as soon as it is asked for the new one. A move that fails later than
that, or after the directory was told of the new lane, leaves nothing to go on in: the session is recovered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import Any

from rearview.contract.events import Events, SessionMoved
from rearview.contract.stream import Continuity
from rearview.errors import RearviewError, Reason, Refused
from rearview.ingress.checkpoints import Checkpoints
from rearview.ingress.choosing import Choosing, declared
from rearview.ingress.feed import Feed
from rearview.ingress.freezing import Frozen, freeze, thaw
from rearview.ingress.lane import Lane
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Record
from rearview.ingress.tasks import SessionTasks

__all__ = ["Moves", "check_in", "stand_still"]

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
        choosing: Choosing,
        checkpoints: Checkpoints,
        *,
        at_a_time: int,
        events: Events,
    ) -> None:
        self._lanes, self._leases, self._choosing = lanes, leases, choosing
        self._checkpoints, self._events = checkpoints, events
        self._places = asyncio.Semaphore(at_a_time)
        self._tasks = SessionTasks()

    def leave(self, session: IngressSession) -> None:
        """A replica of the session's lane is to be left: move it off, and try until it is lost or gone."""
        if not self._tasks.runs(session):
            self._tasks.start(session, self._leave(session, session.lane))

    def vacate(self, sessions: Iterable[Record], replicas: Set[str]) -> None:
        """Let those of the sessions leave that have a replica among `replicas` in their lane."""
        for session in (record.session for record in sessions):
            if session.feed.is_attached and not replicas.isdisjoint(session.lane.replicas):
                self.leave(session)

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
                    await self.move(session, lane)
            except (RearviewError, TimeoutError) as error:
                logger.info("a session stays: %s", getattr(error, "message", type(error).__name__))
                await asyncio.sleep(AGAIN_S)

    async def move(self, session: IngressSession, lane: Lane, to: tuple[str, ...] = ()) -> None:
        """Move the session to other replicas, `to` some if they are named, unless it has left `lane` by now.
        Raises RearviewError and TimeoutError; it then goes on where it is.
        """
        async with session.gate.standing_still:
            if session.lane is lane:
                await self._move(session, to)

    async def _move(self, session: IngressSession, to: tuple[str, ...]) -> None:
        old, started_s = session.lane, time.monotonic()
        replicas = to or await self._choosing.to_go_on(session.spec, session.lease, session.settings)
        if replicas == old.replicas:
            raise Refused(Reason.NO_CAPACITY, "there is no other lane", retry_after_s=AGAIN_S)
        session.lease = await self._leases.move(session.lease, old.replicas)
        session.gate.hold()
        try:
            frozen = await stand_still(session, old)
            new = await self._opened(session, old, replicas, frozen)
            self._lanes.close(old)
            told = await session.resume(new, frozen.ordinal + 1, Continuity.EXACT)
        finally:
            thaw(old)  # Of what was closed nobody hears it.
            session.gate.release()
        self._events(SessionMoved(told, time.monotonic() - started_s, planned=True))

    async def _opened(
        self, session: IngressSession, old: Lane, replicas: tuple[str, ...], frozen: Frozen
    ) -> Lane:
        """The new lane, with the session's past. If there is none, the old one is as it was, or lost."""
        shares = bool(set(replicas) & set(old.replicas))
        past = await self._begin(session, old, frozen, shares=shares)
        begin = {**past, **declared(replace(session.lease, lane=replicas), session.settings, goes_on=True)}
        new: Lane | None = None
        try:
            new = await self._lanes.open(session.spec, session.lease.epoch, replicas, begin)
            session.lease = await self._leases.move(session.lease, replicas)
            if not self._lanes.holds(new):
                raise Refused(Reason.REPLICA_LOST, "the new lane is gone again", retry_after_s=AGAIN_S)
        except BaseException:
            if new is not None:
                self._lanes.close(new)
            if shares or session.lease.lane == replicas:
                self._lanes.lose(old)
            raise
        return new

    async def _begin(
        self, session: IngressSession, old: Lane, frozen: Frozen, *, shares: bool
    ) -> Mapping[str, Any]:
        """Where the new lane gets the session's state from: straight from the old one, unless they share a
        replica.
        """
        source = {"session_id": old.session_id, "epoch": old.epoch}
        addresses = old.addresses
        if shares:
            checkpoint = await self._checkpoints.take(session, frozen, runs_on=False)
            check_in(session, old)
            session.keep(checkpoint, expects=session.past.expects_checkpoints)
            addresses = (self._lanes.address,)
        sources = [{**source, "address": each} for each in addresses]
        return {"state": {"sources": sources, "start": frozen.ordinal + 1}}


async def stand_still(session: IngressSession, lane: Lane) -> Frozen:
    """Freeze the lane of a session that is held, where nothing is on its way any more. Raises RearviewError,
    also if the lane is lost meanwhile, and TimeoutError.
    """
    feed, gate = session.feed, session.gate
    async with asyncio.timeout(OUT_LIMIT_S):
        while True:
            frozen = await freeze(lane, feed.inputs.following - 1)
            if frozen.ordinal < feed.inputs.following:
                await gate.wait(lambda: not feed.in_lane or not feed.is_in(lane))
                check_in(session, lane)
                return frozen
            thaw(lane)  # In the middle of a warm-up, whose other frames have to come first.
            gate.release()
            try:
                await gate.wait(partial(_has_sent, feed, lane, frozen.ordinal))
            finally:
                gate.hold()
            check_in(session, lane)


def _has_sent(feed: Feed, lane: Lane, ordinal: int) -> bool:
    """Also if it never will."""
    return feed.inputs.reach(ordinal) or not feed.is_in(lane)


def check_in(session: IngressSession, lane: Lane) -> None:
    """Raises Refused if the session has lost or left the lane."""
    if not session.feed.is_in(lane):
        raise Refused(Reason.REPLICA_LOST, "the lane was lost meanwhile", retry_after_s=AGAIN_S)
