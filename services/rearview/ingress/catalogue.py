"""A tenant's sessions, whichever ingress feeds them: found, listed, closed.

What this ingress feeds it knows whole; of the others it knows what their lease says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from rearview.config import TenantConfig
from rearview.contract.lease import Lease
from rearview.errors import NotFound, Reason, StreamEnded
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.sessions import Record, Sessions

__all__ = ["Catalogue", "Found", "place_of"]

REFRESH_TIMEOUT_S = 1.0
"""How long replicas are asked who they are if one of a session's is not known."""

Found: TypeAlias = Record | Lease


class Catalogue:
    """The sessions of a service. For one event loop. All may raise DirectoryUnavailable."""

    def __init__(
        self, sessions: Sessions, lanes: Lanes, leases: Leases, refresh: Callable[[float], Awaitable[None]]
    ) -> None:
        """`refresh(timeout_s)` asks the replicas who they are."""
        self._sessions, self._lanes, self._leases, self._refresh = sessions, lanes, leases, refresh

    async def find(self, tenant: TenantConfig, session_id: str) -> Found:
        """A session of the tenant. Raises NotFound."""
        if session_id in self._sessions:
            return self._sessions.find(tenant, session_id)
        return await self.lease_of(tenant.name, session_id)

    async def of(self, tenant: TenantConfig) -> Sequence[Found]:
        """The tenant's sessions, oldest first."""
        here = {place_of(record)[1]: record for record in self._sessions.of(tenant)}
        others = [lease for lease in await self._leases.of(tenant.name) if lease.session_id not in here]
        return sorted([*here.values(), *others], key=place_of)

    async def close(self, tenant: TenantConfig, session_id: str) -> None:
        """End a session and the stream that feeds it. Raises NotFound, and Refused if a replica is gone."""
        if session_id in self._sessions:
            record = self._sessions.find(tenant, session_id)
            self._sessions.close(record, StreamEnded(Reason.CLOSED, "the session was closed"))
            return
        await self.end(await self.lease_of(tenant.name, session_id))

    async def end(self, lease: Lease) -> None:
        """End a session that is another ingress's. Raises LeaseLost, and Refused if a replica is gone."""
        if not self._lanes.knows(lease.lane):
            await self._refresh(REFRESH_TIMEOUT_S)
        taken = await self._leases.take(lease)
        if taken.lane:  # Else it is parked.
            with contextlib.suppress(NotFound):  # Its replicas have forgotten it before its lease has.
                lane, _ = await self._lanes.attach(taken, closes=True)
                self._lanes.close(lane)
        await self._leases.release(taken)

    async def lease_of(self, tenant: str, session_id: str) -> Lease:
        """That of a session of the tenant. Raises NotFound."""
        owner = await self._leases.owner_of(session_id)
        if owner is None or owner.lease.tenant != tenant:
            raise NotFound(Reason.SESSION_UNKNOWN, "there is no such session")
        return owner.lease


def place_of(found: Found) -> tuple[float, str]:
    """Where a session stands in a list: it keeps its place when others end."""
    lease = found if isinstance(found, Lease) else found.session.lease
    return lease.open_time_s, lease.session_id
