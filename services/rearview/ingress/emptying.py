"""The replicas that are emptied so that they can go, as one ingress sees them; and who decides which.

    leaving/REPLICA = "leaving"   the leader's word, renewed while it holds
    scaler          = INGRESS     whoever claims it first; if it dies, the next one when the claim expires

Which they are is decided in `control/consolidation.py`. As with spares, the claim of a replica has no ingress
as its owner, so that a new leader goes on with what the one before has said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from rearview.config import ServiceConfig
from rearview.contract.lease import Claim
from rearview.control.consolidation import leaving
from rearview.directory.protocol import Claims, DirectoryUnavailable
from rearview.ingress.lanes import Lanes
from rearview.ingress.spares import Spares

__all__ = ["Emptying"]

LEADER, PREFIX, LEAVING = "scaler", "leaving/", "leaving"


class Emptying:
    """For one event loop."""

    def __init__(
        self, claims: Claims, ingress_id: str, config: ServiceConfig, lanes: Lanes, spares: Spares
    ) -> None:
        self._claims, self._id, self._lease_s = claims, ingress_id, config.directory.lease_s
        self._lanes, self._spares = lanes, spares
        self._known: Mapping[str, Claim] = {}
        self._leading: Claim | None = None

    @property
    def leaving(self) -> frozenset[str]:
        """Replicas that are emptied: sessions go there last."""
        return frozenset(self._known)

    async def look(self, wanted: Mapping[str, int]) -> None:
        """See which they are, and say so if it is this ingress's turn. `wanted`: how many replicas each span
        that scales is to get to. Raises DirectoryUnavailable.
        """
        self._leading = await self._claims.claim(LEADER, self._id, self._lease_s)
        await self._see()
        if self._leading.owner == self._id:
            await self._decide(wanted)
            await self._see()

    async def stop(self) -> None:
        """Let another ingress lead at once."""
        if self._leading is not None and self._leading.owner == self._id:
            with contextlib.suppress(DirectoryUnavailable):
                await self._claims.drop_claim(self._leading)

    async def _see(self) -> None:
        claims = await self._claims.claims(PREFIX)
        self._known = {claim.key.removeprefix(PREFIX): claim for claim in claims}

    async def _decide(self, wanted: Mapping[str, int]) -> None:
        replicas = [each for each in self._lanes.fleet.replicas.values() if not each.is_draining]
        chosen = leaving(wanted, replicas, self._spares.reserved, self.leaving)
        for replica_id in self.leaving - chosen:
            await self._claims.drop_claim(self._known[replica_id])
        for replica_id in chosen:  # Outlives this leader until the next one looks.
            await self._claims.claim(PREFIX + replica_id, LEAVING, 2 * self._lease_s)
