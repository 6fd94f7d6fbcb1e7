"""Sessions whose lane was lost, until they go on in another one: behind the open call.

From where a session goes on is decided in `control/recovery.py`. Meanwhile its frames wait at the ingress
within their credit; whatever was sent and has no answer is sent again, so that nothing is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from rearview.contract.events import Events, SessionMoved
from rearview.contract.stream import Continuity
from rearview.control.recovery import Plan, plan
from rearview.errors import RearviewError, Reason, Refused
from rearview.ingress.inputs import Input
from rearview.ingress.lanes import Lanes
from rearview.ingress.placing import Placing
from rearview.ingress.session import IngressSession
from rearview.ingress.tasks import SessionTasks
from rearview.recovery_config import RecoveryConfig
from rearview.transport.wire import encode_settings

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two tries to find a lane."""


class Recovery:
    """The recoveries of one ingress. For one event loop."""

    def __init__(
        self,
        placing: Placing,
        lanes: Lanes,
        config: RecoveryConfig,
        *,
        events: Events,
        end: Callable[[IngressSession, RearviewError], None],
    ) -> None:
        """`end`: close a session that cannot go on."""
        self._placing, self._lanes, self._config = placing, lanes, config
        self._events, self._end = events, end
        self._tasks = SessionTasks()
        self._places = asyncio.Semaphore(config.at_a_time)

    def lane_lost(self, session: IngressSession, why: RearviewError) -> None:
        """The session's lane is gone: find it another one."""
        session.lose_lane()
        self._tasks.start(session, self._recover(session, why, time.monotonic()))

    def forget(self, session: IngressSession) -> None:
        """The session has ended, or begins anew: what is under way for it is given up."""
        self._tasks.cancel(session)

    async def stop(self) -> None:
        """Give everything up."""
        await self._tasks.stop()

    async def _recover(self, session: IngressSession, why: RearviewError, lost_s: float) -> None:
        if session.past.attempts.is_over:
            self._end(session, why)
            return
        pause_s = FIRST_PAUSE_S
        while True:
            follows = plan(session.kept, session.past.frames)
            try:
                async with self._places:
                    lease, lane = await self._placing.place_again(
                        session.spec, session.lease, session.settings, self._begin(session, follows)
                    )
                break
            except Refused as error:
                if follows.from_checkpoint and _fits_nowhere(error):
                    logger.warning("a checkpoint is of no use: %s", error.message)
                    session.past.checkpoint = None
                    continue
                if time.monotonic() - lost_s > self._config.give_up_s:
                    logger.warning("a session ends for want of a lane: %s", error.message)
                    self._end(session, why)
                    return
            except RearviewError as error:  # It is another's, or a fault of ours.
                self._end(session, error)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        session.lease = lease
        told = await session.resume(lane, follows.start, follows.continuity)
        seconds = time.monotonic() - lost_s
        logger.warning("a session goes on in another lane: %s, %.2f s", told.value, seconds)
        self._events(SessionMoved(told, seconds, planned=False))

    def _begin(self, session: IngressSession, follows: Plan) -> Mapping[str, Any]:
        """What the replicas of the next lane are told of the session's past."""
        if follows.from_checkpoint:
            source = {
                "address": self._lanes.address,
                "session_id": session.spec.session_id,
                "epoch": session.lane.epoch,
            }
            return {"state": {"sources": [source], "start": follows.start}}
        if follows.start == 0 and follows.continuity is Continuity.EXACT:
            return {}
        first = next(iter(session.feed.inputs.since(follows.start)), None)
        return {"start": {"ordinal": follows.start, "settings": _settings(session, first)}}


def _fits_nowhere(error: Refused) -> bool:
    """Whether replicas cannot go on from what they were given."""
    return error.reason is Reason.METHOD_UNSUPPORTED or error.metadata.get("cause") == "other_model"


def _settings(session: IngressSession, first: Input | None) -> Mapping[str, Any]:
    """By version, those in force at the first frame of the next lane."""
    if first is not None:
        return {str(first.admitted.settings_version): encode_settings(first.admitted.settings)}
    state = session.state
    return {str(state.lane_version): encode_settings(state.in_force)}
