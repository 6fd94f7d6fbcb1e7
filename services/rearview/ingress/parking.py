"""Sessions that nobody feeds give their slots back, and wait at their ingress for whoever resumes them.

A session is parked like it is moved: it stands still, its past is pulled, its lane is closed. A stream that
resumes it finds it as it was, in another lane, opened as if the one before had been lost. What surprises:
once the directory is asked to note that a session has no lane, it is parked to the end, and then woken again
if a stream has come meanwhile: half of it would leave a lane of which nobody knows.
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
from rearview.ingress.moves import check_in, stand_still
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
        self._leaving: dict[str, bool] = {}
        """Sessions of which the directory is told that they have no lane; whether a stream has come since."""

    def unfed(self, session: IngressSession) -> None:
        """No stream feeds the session any more."""
        if session.spec.session_id in self._leaving:
            self._leaving[session.spec.session_id] = False
        else:
            self._tasks.start(session, self._park(session))

    def fed(self, session: IngressSession) -> None:
        """A stream feeds the session again."""
        if session.spec.session_id in self._leaving:
            self._leaving[session.spec.session_id] = True
            return
        self.forget(session)
        if session.past.is_parked:
            self._wake(session)

    def forget(self, session: IngressSession) -> None:
        """The session has ended, or is not to be parked."""
        self._tasks.cancel(session)

    async def stop(self) -> None:
        """Park nothing any more."""
        await self._tasks.stop()

    async def _park(self, session: IngressSession) -> None:
        while True:
            await asyncio.sleep(self._after_s)
            await session.gate.passage(lambda: False)  # What has lost its lane is parked in the next one.
            async with session.gate.standing_still:
                lane = session.lane
                if await self._give_back(session, lane) or session.feed.is_in(lane):
                    return

    async def _give_back(self, session: IngressSession, lane: Lane) -> bool:
        """Whether it is parked. Else it keeps its slot, until it expires or is resumed."""
        session.gate.hold()
        try:
            frozen = await stand_still(session, lane)
            if session.past.frames:
                checkpoint = await self._checkpoints.take(session, frozen, runs_on=False)
                self._checkpoints.check_room(session, checkpoint.num_bytes)
                check_in(session, lane)
                session.keep(checkpoint, expects=session.past.expects_checkpoints)
            return await self._leave(session, lane)
        except (RearviewError, TimeoutError) as error:
            logger.info("a session is not parked: %s", getattr(error, "message", type(error).__name__))
            return False
        finally:
            thaw(lane)  # Of what was closed nobody hears it.
            session.gate.release()

    async def _leave(self, session: IngressSession, lane: Lane) -> bool:
        """The directory is told, then the lane is closed: whether it was still the session's."""
        session_id = session.spec.session_id
        self._leaving[session_id] = False
        try:
            lease = await self._leases.move(session.lease, ())
        finally:
            is_fed = self._leaving.pop(session_id)
        if not session.feed.is_in(lane):
            return False  # Lost meanwhile; whoever replaces it moves the lease on.
        session.lease, session.past.is_parked = lease, True
        session.lose_lane()
        self._lanes.close(lane)
        if is_fed:
            self._wake(session)
        return True

    def _wake(self, session: IngressSession) -> None:
        session.past.is_parked = False
        self._recovery.lane_lost(session, _no_lane())


def _no_lane() -> Refused:
    return Refused(Reason.NO_CAPACITY, "no replica has a free slot for the parked session", retry_after_s=1.0)
