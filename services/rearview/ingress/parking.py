"""Sessions that nobody feeds give their slots back, and wait at their ingress for whoever resumes them.

A session is parked like it is moved: it stands still, its past is pulled, its lane is closed. A stream that
resumes it finds it as it was, in another lane, opened as if the one before had been lost.
"""

from __future__ import annotations

import asyncio
import logging

from rearview.errors import RearviewError, Reason, Refused
from rearview.ingress.checkpoints import Checkpoints
from rearview.ingress.freezing import thaw
from rearview.ingress.lane import Lane
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.moves import stand_still
from rearview.ingress.recovery import Recovery
from rearview.ingress.session import IngressSession
from rearview.ingress.tasks import SessionTasks

__all__ = ["Parking"]

logger = logging.getLogger(__name__)


class Parking:
    """The parked sessions of one ingress. For one event loop."""

    def __init__(
        self,
        lanes: Lanes,
        leases: Leases,
        checkpoints: Checkpoints,
        recovery: Recovery,
        *,
        after_s: float,
    ) -> None:
        """`after_s`: how long a session may be without a stream before it is parked."""
        self._lanes, self._leases, self._checkpoints = lanes, leases, checkpoints
        self._recovery, self._after_s = recovery, after_s
        self._tasks = SessionTasks()

    def unfed(self, session: IngressSession) -> None:
        """No stream feeds the session any more."""
        self._tasks.start(session, self._park(session))

    def fed(self, session: IngressSession) -> None:
        """A stream feeds the session again."""
        self.forget(session)
        if session.past.is_parked:
            session.past.is_parked = False
            self._recovery.lane_lost(session, _no_lane())

    def forget(self, session: IngressSession) -> None:
        """The session has ended, or is not to be parked."""
        self._tasks.cancel(session)

    async def stop(self) -> None:
        """Park nothing any more."""
        await self._tasks.stop()

    async def _park(self, session: IngressSession) -> None:
        await asyncio.sleep(self._after_s)
        async with session.gate.standing_still:
            if session.feed.is_attached:  # Else its lane is lost, and is being replaced.
                await self._give_back(session, session.lane)

    async def _give_back(self, session: IngressSession, lane: Lane) -> None:
        session.gate.hold()
        try:
            frozen = await stand_still(session, lane)
            if session.past.frames:
                checkpoint = await self._checkpoints.take(session, frozen, runs_on=False)
                self._checkpoints.check_room(session, checkpoint.num_bytes)
                session.keep(checkpoint, expects=session.past.expects_checkpoints)
            session.lease = await self._leases.move(session.lease, ())
        except (RearviewError, TimeoutError) as error:  # It keeps its slot, until it expires or is resumed.
            logger.info("a session is not parked: %s", getattr(error, "message", type(error).__name__))
            self._goes_on(session, lane)
            return
        except BaseException:
            self._goes_on(session, lane)
            raise
        session.lose_lane()
        session.past.is_parked = True
        self._lanes.close(lane)

    @staticmethod
    def _goes_on(session: IngressSession, lane: Lane) -> None:
        if session.lane is lane:
            thaw(session.lane)
            session.go_on()


def _no_lane() -> Refused:
    return Refused(Reason.NO_CAPACITY, "no replica has a free slot for the parked session", retry_after_s=1.0)
