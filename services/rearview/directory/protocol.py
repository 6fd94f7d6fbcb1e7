"""What a directory of leases promises, whatever stores it.

A lease says which ingress feeds a session, on which lane, and what it reserves of its tenant's quota. Its
`epoch` fences former owners: every change of ownership raises it, every message to a replica carries it,
and a replica refuses an older one. Two things follow from time alone, and time is the store's: a lease that
nobody renews no longer *counts*, and after `remember_s` it is forgotten. What surprises: expiry never ends a
session and gives nobody a right to it. Ownership changes by `move` alone, a compare-and-set on the epoch.

A store may lose what it has acknowledged (a failover), or all of it (a restart). Owners then know better: a
renewal carries the whole lease, and a store that is behind takes it as it is. A store that came back empty
refuses everything else (DirectoryEmpty) until `reopen`. What holds all the same is at the replicas: they
remember epochs, and whoever asks passes theirs on as `min_epoch`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Protocol

from rearview.contract.lease import Claim, Lease, LeaseRequest, Load, Owner, Quota, Usage
from rearview.errors import Reason, Refused, StreamEnded

__all__ = [
    "MAX_RENEWED",
    "REMEMBER_S",
    "Claims",
    "Directory",
    "DirectoryEmpty",
    "DirectoryUnavailable",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "Limit",
    "QuotaExceeded",
]

REMEMBER_S = 300.0
"""How long a session's epoch is remembered after its last transition, and a lease that nobody renews. Owners
bring back what was forgotten too early."""
MAX_RENEWED = 100
"""Leases that are renewed in one call: more would keep the store from others for too long."""
RETRY_AFTER_S = 1.0


class LeaseHeld(Refused):
    """Another ingress holds the session. `lease` is the lease in force."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(
            Reason.TAKEN_OVER,
            "the session is held elsewhere",
            retry_after_s=RETRY_AFTER_S,
            metadata={"resource": "session"},
        )
        self.lease = lease

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseHeld, (self.lease,)


class LeaseLost(StreamEnded):
    """The epoch moved on, or the lease was released. `current` is the lease in force; None: there is none."""

    def __init__(self, current: Lease | None) -> None:
        super().__init__(Reason.TAKEN_OVER, "the session was taken over")
        self.current = current

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseLost, (self.current,)


class Limit(Enum):
    """What of a quota is used up."""

    SESSIONS = "sessions"
    FRAMES = "frames"
    PIXELS = "pixels"


class QuotaExceeded(Refused):
    """One lease more would take the tenant over its quota."""

    def __init__(self, limit: Limit, quota: Quota) -> None:
        reason, text, metadata = _over(limit, quota)
        super().__init__(reason, text, retry_after_s=2 * RETRY_AFTER_S, metadata=metadata)
        self.limit, self.quota = limit, quota

    def __reduce__(self) -> tuple[object, ...]:
        return QuotaExceeded, (self.limit, self.quota)


def _over(limit: Limit, quota: Quota) -> tuple[Reason, str, dict[str, str]]:
    match limit:
        case Limit.SESSIONS:
            text = f"the tenant has {quota.sessions:.0f} sessions, which is all that it may have"
            return Reason.TENANT_STREAMS_EXHAUSTED, text, {"max_streams": f"{quota.sessions:.0f}"}
        case Limit.FRAMES:
            most = f"{quota.frames_per_s:g}"
            text = f"the tenant's sessions would declare more than {most} frames per second"
            return Reason.TENANT_RATE_EXHAUSTED, text, {"max_frames_per_s": most}
        case Limit.PIXELS:
            most = f"{quota.pixels_per_s:.0f}"
            text = f"the tenant's sessions would declare more than {most} pixels per second"
            return Reason.TENANT_RATE_EXHAUSTED, text, {"max_pixels_per_s": most}


class DirectoryUnavailable(Refused):
    """The store did not answer. Whether the transition happened is not known; trying again is safe.

    Ends no live session: an owner that cannot renew goes on, and replicas still fence by epoch.
    """

    def __init__(self, message: str = "the session directory does not answer") -> None:
        super().__init__(Reason.DIRECTORY_UNAVAILABLE, message, retry_after_s=RETRY_AFTER_S)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), ()


class DirectoryEmpty(DirectoryUnavailable):
    """The store came back empty, and has not been told again what there is: see `Directory.reopen`."""

    def __init__(self) -> None:
        super().__init__("the session directory came back empty and is being told again")


class Claims(Protocol):
    """Names that one holder has at a time, for a while. Every method is atomic, and may raise
    DirectoryUnavailable and DirectoryEmpty.
    """

    async def claim(self, key: str, owner: str, ttl_s: float) -> Claim:
        """Take `key` if nobody holds it, or go on holding it: then the number stays. Somebody else's claim is
        returned as it is, so look at the owner. Numbers grow whatever the store has lost, as far as its clock
        does.
        """
        ...

    async def keep_claim(self, claim: Claim, ttl_s: float) -> Claim | None:
        """The claim with a later expiry; None if its number is not the one in force: it was lost."""
        ...

    async def drop_claim(self, claim: Claim) -> None:
        """Give it up, if its number is the one in force."""
        ...

    async def claims(self, prefix: str = "") -> Sequence[Claim]:
        """Those in force whose keys begin so, in the order of keys."""
        ...


class Directory(Claims, Protocol):
    """Leases of sessions. Every method is atomic; all but `close` may raise DirectoryUnavailable, and all but
    `renew`, `renew_all`, `publish`, `reopen`, `release` and `announce` DirectoryEmpty.
    """

    async def acquire(
        self, wanted: LeaseRequest, lane: tuple[str, ...], ingress: str, min_epoch: int = 0
    ) -> Lease:
        """A lease for a new session, whose epoch is max(stored epoch of the session, `min_epoch`) + 1.

        Granted if the session has no lease, or one of the same tenant and ingress. Else raises LeaseHeld,
        whether that lease has expired or not. Raises QuotaExceeded if the tenant's other leases that count
        leave no room in its quota.
        """
        ...

    async def renew(self, lease: Lease) -> Lease:
        """Push the expiry to a lease time from now; an expired lease can be renewed.

        A store that knows the session under an older epoch, or not at all, takes the lease as it is.
        Raises LeaseLost if a newer epoch is known, or the same one of another ingress, or if it was released.
        """
        ...

    async def renew_all(self, leases: Sequence[Lease]) -> Sequence[Lease | LeaseLost]:
        """`renew` each of them in one call, at most `MAX_RENEWED`; returns for each, in order, the lease, or
        what `renew` would have raised.
        """
        ...

    async def move(self, lease: Lease, *, lane: tuple[str, ...], ingress: str, min_epoch: int = 0) -> Lease:
        """Compare-and-set on `lease.epoch`: a new lane, ingress and expiry under max(epoch, `min_epoch`) + 1.

        For moves of a session, and for its takeover by another ingress, which passes the highest epoch that
        replicas hold. Raises LeaseLost, and changes nothing, if the store knows a newer epoch or none.
        """
        ...

    async def charge(self, lease: Lease, load: Load, quota: Quota) -> Lease:
        """The session's lease in force, whatever its epoch, with another load; its expiry is pushed.

        Raises QuotaExceeded if the load is more than that lease has and the tenant's other leases that count
        leave no room for it in the quota, and LeaseLost if another ingress has the session, or nobody.
        Nothing has changed then.
        """
        ...

    async def release(self, lease: Lease) -> None:
        """End the lease if its epoch is the one in force, else do nothing. The epoch is remembered. Nothing
        depends on it: a lease that is not released stops counting by itself.
        """
        ...

    async def owner_of(self, session_id: str) -> Owner | None:
        """The lease in force, expired or not, and where its ingress is; None if there is none."""
        ...

    async def list(self, tenant: str | None) -> Sequence[Lease]:
        """Leases in force, expired or not (of one tenant, or with None of all), oldest session first, then by
        id.
        """
        ...

    async def leases_on(self, replica_id: str) -> Sequence[Lease]:
        """Leases in force, expired or not, with this replica in their lane; in the order of `list`."""
        ...

    async def usage_by_replica(self) -> Mapping[str, Usage]:
        """What the leases that count take of each replica. Replicas without any are left out."""
        ...

    async def announce(self, ingress: str, address: str) -> bool:
        """The ingress is alive and reached at `address`, for a lease time from now. Returns whether the store
        serves; if not it came back empty: `renew` what is held, then `reopen`.
        """
        ...

    async def publish(self, leases: Collection[Lease]) -> None:
        """Tell a store that came back empty what there is: for a replica, of the sessions that it holds.

        Stored where the session is not known, or under an older epoch; an owner's own word (`renew`) goes
        before it.
        """
        ...

    async def reopen(self, held: Collection[str]) -> bool:
        """Let a store that came back empty serve again, if it knows a lease of every session of `held` (those
        that replicas hold), or if it has been empty for a lease time: by then owners have renewed. Returns
        whether it serves.
        """
        ...

    async def close(self) -> None:
        """Let go of connections. Leases stay."""
        ...
