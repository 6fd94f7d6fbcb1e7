"""A directory in the memory of one process: for one ingress, on one machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rearview.directory.protocol import REMEMBER_S, Lease, LeaseHeld, LeaseLost

__all__ = ["MemoryDirectory"]


@dataclass
class _Entry:
    epoch: int
    lease: Lease | None
    forget_s: float
    """Wall-clock second after which the entry may go."""


class MemoryDirectory:
    """Leases in a dict. No method awaits anything, which is what makes each of them atomic."""

    def __init__(self, *, lease_s: float, remember_s: float = REMEMBER_S) -> None:
        self._lease_s = lease_s
        self._remember_s = remember_s
        self._entries: dict[str, _Entry] = {}  # in the order of their last transition

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
        """See Directory.acquire."""
        self._forget(now)
        entry = self._entries.get(session_id, _Entry(0, None, 0.0))
        held = entry.lease
        if held is not None and not _may_acquire(held, tenant, ingress, now, takeover):
            raise LeaseHeld(held)
        return self._store(
            Lease(
                session_id=session_id,
                tenant=tenant,
                lane=lane,
                ingress=ingress,
                epoch=max(entry.epoch, min_epoch) + 1,
                expiry_s=now + self._lease_s,
                open_time_s=now if held is None else held.open_time_s,
            ),
            now,
        )

    async def renew(self, session_id: str, epoch: int, now: float) -> Lease:
        """See Directory.renew."""
        return self._store(replace(self._in_force(session_id, epoch), expiry_s=now + self._lease_s), now)

    async def move(
        self, session_id: str, epoch: int, lane: tuple[str, ...], ingress: str, now: float
    ) -> Lease:
        """See Directory.move."""
        held = self._in_force(session_id, epoch)
        moved = replace(held, lane=lane, ingress=ingress, epoch=epoch + 1, expiry_s=now + self._lease_s)
        return self._store(moved, now)

    async def release(self, session_id: str, epoch: int) -> None:
        """See Directory.release."""
        entry = self._entries.get(session_id)
        if entry is not None and entry.lease is not None and entry.epoch == epoch:
            entry.lease = None

    async def get(self, session_id: str) -> Lease | None:
        """See Directory.get."""
        entry = self._entries.get(session_id)
        return None if entry is None else entry.lease

    async def list(self, tenant: str | None) -> list[Lease]:
        """See Directory.list."""
        leases = (entry.lease for entry in self._entries.values() if entry.lease is not None)
        chosen = (lease for lease in leases if tenant is None or lease.tenant == tenant)
        return sorted(chosen, key=lambda lease: (lease.open_time_s, lease.session_id))

    async def sessions_by_replica(self) -> Mapping[str, int]:
        """See Directory.sessions_by_replica."""
        return Counter(
            replica
            for entry in self._entries.values()
            if entry.lease is not None
            for replica in set(entry.lease.lane)
        )

    async def close(self) -> None:
        """Nothing to let go of."""

    def _in_force(self, session_id: str, epoch: int) -> Lease:
        entry = self._entries.get(session_id)
        lease = None if entry is None else entry.lease
        if lease is None or lease.epoch != epoch:
            raise LeaseLost(lease)
        return lease

    def _store(self, lease: Lease, now: float) -> Lease:
        self._entries.pop(lease.session_id, None)
        self._entries[lease.session_id] = _Entry(lease.epoch, lease, now + self._remember_s)
        return lease

    def _forget(self, now: float) -> None:
        """Drop the entries whose time is over: they stand first, so this costs what it removes."""
        while self._entries:
            session_id, entry = next(iter(self._entries.items()))
            if entry.forget_s > now:
                return
            del self._entries[session_id]


def _may_acquire(held: Lease, tenant: str, ingress: str, now: float, takeover: bool) -> bool:
    if held.tenant != tenant:
        return False
    return held.ingress == ingress or (takeover and held.expiry_s <= now)
