"""A directory in the memory of one process: for one ingress, on one machine.

Its clock is this process's. It ends with the leases that it knows, so it never comes back empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rearview.contract.lease import Claim, Lease, LeaseRequest, Load, Owner, Quota, Usage
from rearview.directory.protocol import (
    REMEMBER_S,
    DirectoryEmpty,
    LeaseHeld,
    LeaseLost,
    Limit,
    QuotaExceeded,
)

__all__ = ["MemoryDirectory"]

ROUNDING = 1 + 1e-9
"""Sums of rates may be so much over a limit."""


@dataclass(frozen=True)
class _Entry:
    epoch: int
    lease: Lease | None
    forget_s: float


NO_ENTRY = _Entry(0, None, 0.0)


class MemoryDirectory:
    """Leases in a dict. No method awaits anything, which is what makes each of them atomic. See `Directory`
    for what each promises.
    """

    def __init__(
        self, *, lease_s: float, remember_s: float = REMEMBER_S, clock: Callable[[], float] = time.time
    ) -> None:
        assert remember_s > lease_s, f"remember_s {remember_s} <= lease_s {lease_s}"
        self._lease_s, self._remember_s, self._clock = lease_s, remember_s, clock
        self._is_open = True
        self._empty_since_s: float | None = None
        self._entries: dict[str, _Entry] = {}  # in the order of their last transition
        self._claims: dict[str, Claim] = {}  # those that were dropped or lost too, for their numbers
        self._addresses: dict[str, tuple[str, float]] = {}  # with the second of their expiry

    async def acquire(
        self, wanted: LeaseRequest, lane: tuple[str, ...], ingress: str, min_epoch: int = 0
    ) -> Lease:
        """See Directory.acquire."""
        now, entry = self._ask(), self._entry(wanted.session_id)
        held = entry.lease
        if held is not None and (held.tenant, held.ingress) != (wanted.tenant, ingress):
            raise LeaseHeld(held)
        others = (lease for lease in self._counting(wanted.tenant, now) if lease is not held)
        _check_quota(others, wanted.load, wanted.quota)
        return self._store(
            Lease(
                session_id=wanted.session_id,
                tenant=wanted.tenant,
                lane=lane,
                ingress=ingress,
                epoch=max(entry.epoch, min_epoch) + 1,
                expiry_s=0.0,
                open_time_s=now if held is None else held.open_time_s,
                load=wanted.load,
                token_sha256=wanted.token_sha256,
            )
        )

    async def renew(self, lease: Lease) -> Lease:
        """See Directory.renew."""
        self._check_not_lost(lease)
        return self._store(lease)

    async def renew_all(self, leases: Sequence[Lease]) -> Sequence[Lease | LeaseLost]:
        """See Directory.renew_all."""
        found: list[Lease | LeaseLost] = []
        for lease in leases:
            try:
                found.append(await self.renew(lease))
            except LeaseLost as lost:
                found.append(lost)
        return found

    async def move(self, lease: Lease, *, lane: tuple[str, ...], ingress: str, min_epoch: int = 0) -> Lease:
        """See Directory.move."""
        self._ask()
        self._check_not_lost(lease)
        epoch = max(lease.epoch, min_epoch) + 1
        return self._store(replace(lease, lane=lane, ingress=ingress, epoch=epoch))

    async def charge(self, lease: Lease, load: Load, quota: Quota) -> Lease:
        """See Directory.charge."""
        now, held = self._ask(), self._entry(lease.session_id).lease
        if held is None or held.ingress not in (lease.ingress, ""):
            raise LeaseLost(held)
        if load.frames_per_s > held.load.frames_per_s or load.pixels_per_s > held.load.pixels_per_s:
            _check_quota(
                (each for each in self._counting(lease.tenant, now) if each is not held), load, quota
            )
        return self._store(replace(held, load=load))

    async def release(self, lease: Lease) -> None:
        """See Directory.release."""
        if not _is_lost(self._entry(lease.session_id), lease):
            self._put(lease.session_id, _Entry(lease.epoch, None, self._clock() + self._remember_s))

    async def owner_of(self, session_id: str) -> Owner | None:
        """See Directory.owner_of."""
        now, lease = self._ask(), self._entry(session_id).lease
        if lease is None:
            return None
        address, expiry_s = self._addresses.get(lease.ingress, ("", 0.0))
        return Owner(lease, address if expiry_s > now else None)

    async def list(self, tenant: str | None) -> Sequence[Lease]:
        """See Directory.list."""
        self._ask()
        return _in_order(lease for lease in self._leases() if tenant in (None, lease.tenant))

    async def leases_on(self, replica_id: str) -> Sequence[Lease]:
        """See Directory.leases_on."""
        self._ask()
        return _in_order(lease for lease in self._leases() if replica_id in lease.lane)

    async def usage_by_replica(self) -> Mapping[str, Usage]:
        """See Directory.usage_by_replica."""
        leases = self._counting(None, self._ask())
        on: dict[str, list[Lease]] = {}
        for lease in leases:
            for replica in set(lease.lane):
                on.setdefault(replica, []).append(lease)
        return {replica: _usage(some) for replica, some in on.items()}

    async def announce(self, ingress: str, address: str) -> bool:
        """See Directory.announce."""
        now = self._clock()
        alive = {one: known for one, known in self._addresses.items() if known[1] > now}
        self._addresses = {**alive, ingress: (address, now + self._lease_s)}
        return self._is_open

    async def publish(self, leases: Collection[Lease]) -> None:
        """See Directory.publish."""
        for lease in leases:
            if self._entry(lease.session_id).epoch < lease.epoch:
                self._store(lease)

    async def reopen(self, held: Collection[str]) -> bool:
        """See Directory.reopen."""
        now = self._clock()
        if not self._is_open:
            if self._empty_since_s is None:
                self._empty_since_s = now
            is_late = now - self._empty_since_s >= self._lease_s
            self._is_open = is_late or all(self._entry(one).lease is not None for one in held)
        if self._is_open:
            self._empty_since_s = None
        return self._is_open

    async def claim(self, key: str, owner: str, ttl_s: float) -> Claim:
        """See Claims.claim."""
        assert owner, f"{key} is claimed by nobody"
        now, held = self._ask(), self._claims.get(key)
        is_held = held is not None and held.expiry_s > now
        if held is not None and is_held and held.owner != owner:
            return held
        # By the clock, as in Redis.
        number = round(now * 1000) if held is None else max(held.number + 1, round(now * 1000))
        if held is not None and is_held:
            number = held.number
        self._claims[key] = Claim(key, owner, number, now + ttl_s)
        return self._claims[key]

    async def keep_claim(self, claim: Claim, ttl_s: float) -> Claim | None:
        """See Claims.keep_claim."""
        now, held = self._ask(), self._claims.get(claim.key)
        if held is None or held.number != claim.number or not held.owner:
            return None
        self._claims[claim.key] = replace(held, expiry_s=now + ttl_s)
        return self._claims[claim.key]

    async def drop_claim(self, claim: Claim) -> None:
        """See Claims.drop_claim."""
        now, held = self._ask(), self._claims.get(claim.key)
        if held is not None and held.number == claim.number:
            self._claims[claim.key] = replace(held, owner="", expiry_s=now)

    async def claims(self, prefix: str = "") -> Sequence[Claim]:
        """See Claims.claims."""
        now = self._ask()
        found = (claim for key, claim in self._claims.items() if key.startswith(prefix))
        return sorted((claim for claim in found if claim.expiry_s > now), key=lambda claim: claim.key)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _ask(self) -> float:
        """What time it is. Raises DirectoryEmpty."""
        now = self._clock()
        self._forget(now)
        if not self._is_open:
            raise DirectoryEmpty
        return now

    def _entry(self, session_id: str) -> _Entry:
        return self._entries.get(session_id, NO_ENTRY)

    def _leases(self) -> Iterable[Lease]:
        return (entry.lease for entry in self._entries.values() if entry.lease is not None)

    def _counting(self, tenant: str | None, now: float) -> Sequence[Lease]:
        mine = (lease for lease in self._leases() if tenant in (None, lease.tenant))
        return [lease for lease in mine if lease.expiry_s > now]

    def _check_not_lost(self, lease: Lease) -> None:
        entry = self._entry(lease.session_id)
        if _is_lost(entry, lease):
            raise LeaseLost(entry.lease)

    def _store(self, lease: Lease) -> Lease:
        now = self._clock()
        stored = replace(lease, expiry_s=now + self._lease_s)
        self._put(lease.session_id, _Entry(lease.epoch, stored, now + self._remember_s))
        return stored

    def _put(self, session_id: str, entry: _Entry) -> None:
        self._entries.pop(session_id, None)
        self._entries[session_id] = entry

    def _forget(self, now: float) -> None:
        """Drop what is older than is remembered. Such entries stand first, so they cost what they free."""
        old = now - self._remember_s
        self._claims = {key: claim for key, claim in self._claims.items() if claim.expiry_s > old}
        while self._entries:
            session_id, entry = next(iter(self._entries.items()))
            if entry.forget_s > now:
                return
            del self._entries[session_id]


def _is_lost(entry: _Entry, lease: Lease) -> bool:
    """Whether its owner has lost the session: somebody else has its epoch or a newer one, or it ended."""
    if entry.epoch != lease.epoch:
        return entry.epoch > lease.epoch
    return entry.lease is None or entry.lease.ingress not in (lease.ingress, "")


def _usage(leases: Collection[Lease]) -> Usage:
    frames = sum(lease.load.frames_per_s for lease in leases)
    return Usage(len(leases), Load(frames, sum(lease.load.pixels_per_s for lease in leases)))


def _check_quota(others: Iterable[Lease], load: Load, quota: Quota) -> None:
    """Raises QuotaExceeded if one more session of that load is too much."""
    used = _usage(list(others))
    for limit, wanted, most in (
        (Limit.SESSIONS, used.sessions + 1, quota.sessions),
        (Limit.FRAMES, used.load.frames_per_s + load.frames_per_s, quota.frames_per_s),
        (Limit.PIXELS, used.load.pixels_per_s + load.pixels_per_s, quota.pixels_per_s),
    ):
        if wanted > most * ROUNDING:
            raise QuotaExceeded(limit, quota)


def _in_order(leases: Iterable[Lease]) -> Sequence[Lease]:
    return sorted(leases, key=lambda lease: (lease.open_time_s, lease.session_id))
