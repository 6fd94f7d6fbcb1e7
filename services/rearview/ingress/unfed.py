"""Sessions that nobody feeds: they are parked, and make room for the tenant's next, wherever it is opened.

Where ingresses share a directory, each claims `unfed/TENANT/SESSION` there while nobody feeds the session, so
that the others know of it; the number of the claim tells since when. A session to which its client returns in
the very moment in which another ingress ends it is ended, as if the client had come a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence

from rearview.contract.lease import Claim
from rearview.directory.protocol import Claims, DirectoryUnavailable, LeaseLost
from rearview.errors import NotFound, Refused
from rearview.ingress.catalogue import Catalogue
from rearview.ingress.parking import Parking
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Sessions
from rearview.ingress.shared import Shared

__all__ = ["Unfed"]

logger = logging.getLogger(__name__)

PREFIX = "unfed/"
AGAIN_S = 1.0
"""After a directory that did not answer."""


class Unfed:
    """Those of one ingress, and what it may end of the others'. For one event loop."""

    def __init__(
        self,
        claims: Claims,
        ingress_id: str,
        sessions: Sessions,
        parking: Parking,
        catalogue: Catalogue,
        grace_s: float,
        is_shared: bool,
    ) -> None:
        """`grace_s`: how long a session stays that nobody feeds. `is_shared`: whether there may be others."""
        self._claims, self._id = claims, ingress_id
        self._sessions, self._parking, self._catalogue = sessions, parking, catalogue
        self._grace_s, self._is_shared = grace_s, is_shared
        self._unfed: dict[str, str] = {}
        """The key of each session here that nobody feeds."""
        self._told: dict[str, Claim] = {}
        """What the directory was told, by key."""
        self._woken = asyncio.Event()
        self._known = Shared(lambda: claims.claims(PREFIX))

    def unfed(self, session: IngressSession) -> None:
        """No stream feeds the session any more."""
        self._parking.unfed(session)
        if self._is_shared:
            self._unfed[session.spec.session_id] = f"{PREFIX}{session.tenant.name}/{session.spec.session_id}"
            self._woken.set()

    def fed(self, session: IngressSession) -> None:
        """A stream feeds the session again."""
        self._parking.fed(session)
        self._forget(session)

    def forget(self, session: IngressSession) -> None:
        """The session has ended."""
        self._parking.forget(session)
        self._forget(session)

    async def evict(self, tenant: str, for_slots: bool) -> tuple[str, ...] | None:
        """See `Sessions.evict`; one of another ingress, if there is none here."""
        evicted = self._sessions.evict(tenant, for_slots)
        if evicted is not None or not self._is_shared:
            return evicted
        with contextlib.suppress(DirectoryUnavailable):
            for claim in _of(tenant, await self._known()):
                replicas = await self._end(tenant, claim, for_slots)
                if replicas is not None:
                    return replicas
        return None

    async def run(self) -> None:
        """Tell the directory what has changed, for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._tell()
            except DirectoryUnavailable as error:
                logger.info("nobody is told of sessions without a stream: %s", error.message)
                await asyncio.sleep(AGAIN_S)
                self._woken.set()

    async def stop(self) -> None:
        """Park nothing any more. What the directory was told is forgotten there after the grace time."""
        await self._parking.stop()
        await self._known.settle()

    def _forget(self, session: IngressSession) -> None:
        if self._unfed.pop(session.spec.session_id, None) is not None:
            self._woken.set()

    async def _tell(self) -> None:
        for key in self._told.keys() - set(self._unfed.values()):
            await self._claims.drop_claim(self._told.pop(key))
        for key in set(self._unfed.values()) - self._told.keys():
            claim = await self._claims.claim(key, self._id, self._grace_s)
            if claim.owner != self._id:  # Another ingress had the session before.
                await self._claims.drop_claim(claim)
                claim = await self._claims.claim(key, self._id, self._grace_s)
            self._told[key] = claim

    async def _end(self, tenant: str, claim: Claim, for_slots: bool) -> tuple[str, ...] | None:
        """End a session of another ingress that is unfed still. The replicas of its lane; None: it stays."""
        session_id = claim.key.rpartition("/")[2]
        if claim.owner == self._id or await self._claims.keep_claim(claim, self._grace_s) is None:
            return None
        with contextlib.suppress(NotFound, LeaseLost, Refused):
            lease = await self._catalogue.lease_of(tenant, session_id)
            if lease.lane or not for_slots:
                await self._catalogue.end(lease)
                await self._claims.drop_claim(claim)
                return lease.lane
        return None


def _of(tenant: str, claims: Sequence[Claim]) -> Iterator[Claim]:
    """The tenant's, from the session that nobody has fed for longest on."""
    mine = (claim for claim in claims if claim.key.rpartition("/")[0] == f"{PREFIX}{tenant}")
    yield from sorted(mine, key=lambda claim: claim.number)
