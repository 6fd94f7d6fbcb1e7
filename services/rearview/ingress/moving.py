"""Everything that moves a session of this ingress while its replicas still run.

A replica that drains, one that is fuller than another, one that is to go: each has its reason and its pace,
and all of them move by `Moves`, which waits for the one before.
"""

from __future__ import annotations

import asyncio

from rearview.config import ServiceConfig
from rearview.contract.events import Events
from rearview.directory.protocol import Claims
from rearview.ingress.checkpoints import Checkpoints
from rearview.ingress.choosing import Choosing
from rearview.ingress.emptying import Emptying
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.members import Roster
from rearview.ingress.moves import Moves
from rearview.ingress.rebalancing import Rebalancing
from rearview.ingress.scaling import Scaling
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Sessions

__all__ = ["Moving"]


class Moving:
    """Of one ingress. For one event loop."""

    def __init__(
        self,
        config: ServiceConfig,
        claims: Claims,
        ingress_id: str,
        lanes: Lanes,
        leases: Leases,
        choosing: Choosing,
        emptying: Emptying,
        checkpoints: Checkpoints,
        sessions: Sessions,
        roster: Roster,
        events: Events,
    ) -> None:
        """`sessions`: those that this ingress feeds."""
        at_a_time = config.recovery.at_a_time
        self.moves = Moves(lanes, leases, choosing, checkpoints, at_a_time=at_a_time, events=events)
        mine, every_s = (choosing, self.moves, sessions), config.placement.rebalance_every_s
        self.rebalancing = Rebalancing(claims, ingress_id, *mine, roster.try_refresh, every_s)
        self.scaling = Scaling(config, emptying, *mine, lambda: lanes.pulses.described, events=events)

    async def run(self) -> None:
        """Look for ever whether a session is to move."""
        await asyncio.gather(self.rebalancing.run(), self.scaling.run())

    def leave(self, session: IngressSession) -> None:
        """A replica of the session's lane drains: move it off."""
        self.moves.leave(session)

    def forget(self, session: IngressSession) -> None:
        """The session has ended, or has lost its lane: there is nothing to move."""
        for each in (self.moves, self.rebalancing, self.scaling):
            each.forget(session)

    async def stop(self) -> None:
        """Give everything up."""
        for each in (self.rebalancing, self.scaling, self.moves):
            await each.stop()
