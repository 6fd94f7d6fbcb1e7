"""Checkpoints: what sessions remember, copied to their ingress while they run.

A session whose replicas are gone goes on from its last checkpoint, with the frames since then sent again. The
lane is frozen at an ordinal on every span, each span's bytes are pulled over a connection of their own, and
each runs on as soon as it was copied: a session stands still for a copy, not for its transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from rearview.config import LinkConfig
from rearview.contract.events import CheckpointTaken, Events
from rearview.errors import NotFound, RearviewError, Reason, Refused
from rearview.ingress.freezing import Frozen, freeze, thaw
from rearview.ingress.lane import Lane
from rearview.ingress.lanes import Lanes
from rearview.ingress.past import Checkpoint
from rearview.ingress.session import IngressSession
from rearview.ingress.tasks import SessionTasks
from rearview.recovery_config import RecoveryConfig
from rearview.transport.bulk import pull

__all__ = ["Checkpoints"]

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""In a row; then the session's last frames must do until one succeeds."""
QUIET_LIMIT_S = 3.0
"""How long a replica may take until all frames up to a checkpoint have left it."""


class Checkpoints:
    """Those of the sessions of one ingress. For one event loop."""

    def __init__(
        self, lanes: Lanes, links: LinkConfig, node: str, config: RecoveryConfig, events: Events
    ) -> None:
        self._lanes, self._links, self._node = lanes, links, node
        self._config, self._events = config, events
        self._tasks = SessionTasks()
        self._sessions: dict[str, IngressSession] = {}

    def watch(self, session: IngressSession) -> None:
        """Take checkpoints of the session from now on, if it has a past."""
        self._sessions[session.spec.session_id] = session
        if not session.past.frames or not self._config.checkpoint_bytes_per_s:
            return
        session.past.expects_checkpoints = True
        self._tasks.start(session, self._run(session))

    def forget(self, session: IngressSession) -> None:
        """The session has ended."""
        self._sessions.pop(session.spec.session_id, None)
        self._tasks.cancel(session)

    async def stop(self) -> None:
        """Take no more."""
        await self._tasks.stop()

    async def source(self, request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """What a replica pulls that opens a session from its checkpoint. Raises NotFound."""
        session = self._sessions.get(request["session_id"])
        checkpoint = None if session is None else session.past.checkpoint
        if checkpoint is None:
            raise NotFound(Reason.SESSION_UNKNOWN, "there is no checkpoint of that session here")
        for part in checkpoint.parts:
            yield part

    async def take(self, session: IngressSession, frozen: Frozen, *, runs_on: bool) -> Checkpoint:
        """A checkpoint at the ordinal at which the session's lane is frozen. `runs_on`: each span does, as
        soon as it was copied. Raises RearviewError.
        """
        lane = session.lane
        parts = await asyncio.gather(
            *(self._pull(lane, replica, runs_on=runs_on) for replica in range(len(lane.links)))
        )
        return Checkpoint(frozen.ordinal, [piece for pieces in parts for piece in pieces])

    async def _run(self, session: IngressSession) -> None:
        pause_s, failures, replayed = self._config.checkpoint_interval_s, 0, 0
        while True:
            await self._pause(session, pause_s, partial(_has_replayed, session, replayed))
            replayed = session.past.replayed_to
            if not self._has_news(session):
                continue
            started_s, lane = time.monotonic(), session.lane
            try:
                async with asyncio.timeout(QUIET_LIMIT_S + self._config.give_up_s):
                    checkpoint = await self._checkpoint(session, lane)
            except (RearviewError, TimeoutError) as error:
                logger.info("no checkpoint: %s", getattr(error, "message", type(error).__name__))
                failures += 1
                if failures == MAX_FAILURES:
                    session.keep(None, expects=False)
                continue
            if checkpoint is None:
                continue
            failures = 0
            seconds = time.monotonic() - started_s
            session.keep(checkpoint)
            self._events(CheckpointTaken(checkpoint.num_bytes, seconds))
            budget_s = checkpoint.num_bytes / self._config.checkpoint_bytes_per_s
            pause_s = max(self._config.checkpoint_interval_s, budget_s)

    async def _pause(self, session: IngressSession, pause_s: float, has_replayed: Callable[[], bool]) -> None:
        """Until the next one is due: sooner, if frames that are kept need the room, and at once when all that
        was sent again has come back: until there is one, another loss would cost all of that once more.
        """
        least_s = min(pause_s, self._config.checkpoint_interval_s)
        for until, within_s in (
            (has_replayed, least_s),
            (lambda: has_replayed() or session.feed.inputs.half_full(), pause_s - least_s),
        ):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await session.gate.wait(until)

    @staticmethod
    def _has_news(session: IngressSession) -> bool:
        """Whether it has a lane, and frames that the last checkpoint has not seen."""
        known = session.past.checkpointed
        return session.feed.is_attached and session.kept.following - 1 > (-1 if known is None else known)

    async def _checkpoint(self, session: IngressSession, lane: Lane) -> Checkpoint | None:
        """None: the session has left the lane meanwhile."""

        async with session.gate.standing_still:
            if not session.feed.is_in(lane):
                return None
            try:
                frozen = await freeze(lane, session.kept.following - 1)
                self.check_room(session, frozen.num_bytes)
                checkpoint = await self.take(session, frozen, runs_on=True)
            except BaseException:
                thaw(lane)
                raise
        # Only then is nothing before it owed: what has committed cannot run again.
        is_in, at = partial(session.feed.is_in, lane), checkpoint.ordinal
        await session.gate.wait(lambda: not is_in() or session.feed.unanswered > at)
        return checkpoint if is_in() else None

    def check_room(self, session: IngressSession, num_bytes: int) -> None:
        """Raises Refused(NO_CAPACITY) if a checkpoint of so many bytes is too much beside those of others."""
        others = [each for each in self._sessions.values() if each is not session and each.past.checkpoint]
        tenant = session.tenant
        mine = [each for each in others if each.tenant.name == tenant.name]
        for held, most, what in (
            (others, self._config.checkpoint_bytes, "recovery.checkpoint_bytes"),
            (mine, tenant.max_kept_bytes, "the tenant's max_kept_bytes"),
        ):
            if _checkpoint_bytes(held) + num_bytes > most:
                raise Refused(Reason.NO_CAPACITY, f"{what} has no room for it", retry_after_s=1.0)

    async def _pull(self, lane: Lane, replica: int, *, runs_on: bool) -> list[bytes]:
        request = {
            "session_id": lane.session_id,
            "epoch": lane.epoch,
            "thaw": runs_on,
            "limit_s": QUIET_LIMIT_S,
        }
        parts = pull(self._links, self._node, lane.addresses[replica], request, wait_s=QUIET_LIMIT_S)
        async with aclosing(parts):
            return [part async for part in parts]


def _has_replayed(session: IngressSession, known: int) -> bool:
    """Whether the lane has answered all that was sent to it again. `known`: of which replay that is known."""
    ordinal = session.past.replayed_to
    return ordinal > known and session.feed.is_attached and session.feed.returned >= ordinal - 1


def _checkpoint_bytes(sessions: Sequence[IngressSession]) -> int:
    found = (session.past.checkpoint for session in sessions)
    return sum(checkpoint.num_bytes for checkpoint in found if checkpoint is not None)
