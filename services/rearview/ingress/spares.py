"""The spares of a service, as one ingress sees and takes them; and who decides which they are.

    spare/REPLICA = "spare"      the leader's word, renewed while it holds
    spare/REPLICA = INGRESS      taken: its room is for those that this ingress recovers, for a while
    leader        = INGRESS      whoever claims it first; if it dies, the next one when the claim expires

Who is a spare is decided in `control/spares.py`. What surprises: the claim of a spare has no ingress as its
owner, so that a new leader goes on with what the one before has said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence

from rearview.config import ServiceConfig
from rearview.contract.lease import Claim
from rearview.control.spares import SPARE, assign
from rearview.directory.protocol import Claims, DirectoryUnavailable
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases

__all__ = ["Spares"]

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""How often each ingress looks, and the leader decides."""
TAKEN_S = 10.0
"""How long the room of a spare that was taken is kept from new sessions, and from others that recover."""
LEADER, PREFIX = "leader", "spare/"


class Spares:
    """The spares of the service. For one event loop."""

    def __init__(
        self, claims: Claims, ingress_id: str, config: ServiceConfig, lanes: Lanes, leases: Leases
    ) -> None:
        self._claims, self._id, self._lease_s = claims, ingress_id, config.directory.lease_s
        self._wanted = {span.name: span.spares for span in config.spans if span.spares}
        self._lanes, self._leases = lanes, leases
        self._known: Mapping[str, Claim] = {}
        self._leading: Claim | None = None

    @property
    def reserved(self) -> frozenset[str]:
        """Replicas that new sessions keep off."""
        return frozenset(self._known)

    @property
    def free(self) -> frozenset[str]:
        """Those that nobody has taken."""
        return frozenset(each for each, claim in self._known.items() if claim.owner == SPARE)

    @property
    def others(self) -> frozenset[str]:
        """Those that other ingresses have taken."""
        return frozenset(each for each, claim in self._known.items() if claim.owner not in (SPARE, self._id))

    @property
    def _mine(self) -> frozenset[str]:
        return frozenset(each for each, claim in self._known.items() if claim.owner == self._id)

    @property
    def leads(self) -> bool:
        """Whether this ingress decides, as far as it knows."""
        return self._leading is not None and self._leading.owner == self._id

    async def take(self, lane: Sequence[str]) -> bool:
        """Take the spares among the replicas of a lane, so that nobody else counts on them. False: another
        ingress was faster. Raises DirectoryUnavailable.
        """
        for replica_id in self.free.intersection(lane):
            await self._claims.drop_claim(self._known[replica_id])
            taken = await self._claims.claim(PREFIX + replica_id, self._id, TAKEN_S)
            self._known = {**self._known, replica_id: taken}
            logger.warning("a spare is taken: %s", replica_id)
        return self.reserved.intersection(lane) <= self._mine

    async def look(self) -> None:
        """See what is claimed, and decide if it is this ingress's turn. Raises DirectoryUnavailable."""
        if not self._wanted:
            return
        self._leading = await self._claims.claim(LEADER, self._id, self._lease_s)
        await self._see()
        if self.leads:
            await self._decide()
            await self._see()

    async def try_look(self) -> None:
        """`look`, but what is known stays in use where the directory does not answer."""
        try:
            await self.look()
        except DirectoryUnavailable as error:
            logger.info("spares are not known anew: %s", error.message)

    async def run(self) -> None:
        """Look for ever."""
        while self._wanted:
            await asyncio.sleep(INTERVAL_S)
            await self.try_look()

    async def stop(self) -> None:
        """Let another ingress lead at once."""
        if self._leading is not None and self.leads:
            with contextlib.suppress(DirectoryUnavailable):
                await self._claims.drop_claim(self._leading)

    async def _see(self) -> None:
        claims = await self._claims.claims(PREFIX)
        self._known = {claim.key.removeprefix(PREFIX): claim for claim in claims}

    async def _decide(self) -> None:
        owners = {replica_id: claim.owner for replica_id, claim in self._known.items()}
        usage = await self._leases.usage_by_replica()
        assignment = assign(self._wanted, self._lanes.fleet.replicas.values(), usage, owners)
        for replica_id in assignment.dropped:
            await self._claims.drop_claim(self._known[replica_id])
        for replica_id in assignment.spares:  # Outlives this leader until the next one looks.
            await self._claims.claim(PREFIX + replica_id, SPARE, 2 * self._lease_s)
