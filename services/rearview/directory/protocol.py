"""What a directory of leases promises, whatever stores it.

A lease says which ingress feeds a session and on which lane. Its `epoch` fences former owners: every
transition of ownership raises it, every message to a replica carries it, and a replica refuses an older
one. What surprises: an expired lease still stands. Expiry only permits a takeover by somebody who has
fenced the owner or found it dead (`takeover=True`); it never ends a session by itself.

`now` is wall-clock time in seconds, since it is compared between machines; clocks that differ by less
than `lease_s` are good enough, because ownership rests on epochs and not on time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rearview.contract.lease import Lease
from rearview.errors import Reason, Refused, StreamEnded

__all__ = ["REMEMBER_S", "Directory", "DirectoryUnavailable", "Lease", "LeaseHeld", "LeaseLost"]

REMEMBER_S = 3600.0
"""How long a session's epoch is remembered after its last transition, and a lease that nobody renews."""


class LeaseHeld(Refused):
    """Another ingress holds the session. `lease` is the lease in force."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(
            Reason.TAKEN_OVER,
            "the session is held elsewhere",
            retry_after_s=1.0,
            metadata={"resource": "session"},
        )
        self.lease = lease

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseHeld, (self.lease,)


class LeaseLost(StreamEnded):
    """The epoch moved on, or the lease is gone. `current` is the lease in force, None if there is none.

    None also means that the store forgot (a Redis that came back empty): the owner may then `acquire`
    again with `min_epoch` set to the epoch it held.
    """

    def __init__(self, current: Lease | None) -> None:
        super().__init__(Reason.TAKEN_OVER, "the session was taken over")
        self.current = current

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseLost, (self.current,)


class DirectoryUnavailable(Refused):
    """The store did not answer. Whether the transition happened is not known; trying again is safe.

    Ends no live session: an owner that cannot renew goes on, and replicas still fence by epoch.
    """

    def __init__(self) -> None:
        super().__init__(Reason.NO_CAPACITY, "the session directory does not answer", retry_after_s=1.0)

    def __reduce__(self) -> tuple[object, ...]:
        return DirectoryUnavailable, ()


class Directory(Protocol):
    """Leases of sessions. Every method is atomic; all but `close` may raise DirectoryUnavailable."""

    async def acquire(
        self,
        session_id: str,
        tenant: str,
        lane: tuple[str, ...],
        ingress: str,
        now: float,
        min_epoch: int = 0,
        *,
        takeover: bool = False,
    ) -> Lease:
        """A new lease whose epoch is max(stored epoch of the session, `min_epoch`) + 1.

        Granted if the session has no lease, or one of the same tenant and ingress (the former stream is
        fenced), or an expired one of the same tenant with `takeover`: the caller then says that the
        owner was fenced or found dead. Else raises LeaseHeld, with `takeover` too. A lease that has not
        expired changes hands by `move`.
        """
        ...

    async def renew(self, session_id: str, epoch: int, now: float) -> Lease:
        """Push the expiry to `now` + `lease_s`; an expired lease can be renewed.

        Raises LeaseLost if `epoch` is not the one in force.
        """
        ...

    async def move(
        self, session_id: str, epoch: int, lane: tuple[str, ...], ingress: str, now: float
    ) -> Lease:
        """Compare-and-set on `epoch`: a new lane, ingress and expiry, and `epoch` + 1.

        Raises LeaseLost, and changes nothing, if `epoch` is not the one in force.
        """
        ...

    async def release(self, session_id: str, epoch: int) -> None:
        """End the lease if `epoch` is the one in force, else do nothing. The epoch is remembered."""
        ...

    async def get(self, session_id: str) -> Lease | None:
        """The lease in force, expired or not; None if there is none."""
        ...

    async def list(self, tenant: str | None) -> list[Lease]:
        """Leases in force (of one tenant, or with None of all), oldest session first, then by id."""
        ...

    async def sessions_by_replica(self) -> Mapping[str, int]:
        """How many leases in force have a replica in their lane. Replicas without any are left out."""
        ...

    async def close(self) -> None:
        """Let go of connections. Leases stay."""
        ...
