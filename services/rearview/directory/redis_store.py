"""A directory in Redis or Valkey, shared by several ingresses.

Every method is one Lua script (`scripts/`), so two ingresses cannot both own a session, and its clock is
the server's. A call whose answer was lost is sent again; a nonce makes the script recognise it. Every key but
the incarnation lives for `remember_s`, far beyond `lease_s`: keys that vanish are those of owners long dead.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.asyncio import Redis

from rearview.contract.lease import Claim, Lease, LeaseRequest, Load, Owner, Quota, Usage
from rearview.directory.connection import Circuit, Connection, connect
from rearview.directory.protocol import (
    MAX_RENEWED,
    REMEMBER_S,
    DirectoryEmpty,
    LeaseHeld,
    LeaseLost,
    Limit,
    QuotaExceeded,
)

if TYPE_CHECKING:
    from redis.commands.core import AsyncScript

__all__ = ["RedisDirectory"]

NO_LIMIT = 1e300
"""For Lua, which reads no infinity."""
_SCRIPTS = Path(__file__).parent / "scripts"

Argument: TypeAlias = str | int | float
Answer: TypeAlias = tuple[str, Sequence[Any]]
"""A status, and what came with it."""


class RedisDirectory:
    """Leases in Redis. See `Directory` for what each method promises."""

    def __init__(
        self,
        client: Redis,
        circuit: Circuit,
        *,
        lease_s: float,
        key_prefix: str,
        remember_s: float = REMEMBER_S,
    ) -> None:
        """`client` must decode responses, and make every call once; it is closed by `close`."""
        assert remember_s > lease_s, f"remember_s {remember_s} <= lease_s {lease_s}"
        self._lease_ms, self._remember_ms = round(lease_s * 1000), round(remember_s * 1000)
        self._prefix = f"{{{key_prefix}}}"  # in braces: one hash slot for all keys
        self._scripts = {path.stem: _script(client, path) for path in _SCRIPTS.glob("*.lua")}
        self._connection = Connection(client, circuit, lambda: self._call("probe", uuid.uuid4().hex))

    @classmethod
    def from_url(
        cls,
        url: str,
        circuit: Circuit,
        *,
        lease_s: float,
        key_prefix: str,
        password: str | None = None,
        remember_s: float = REMEMBER_S,
    ) -> RedisDirectory:
        """For `redis://…` or `rediss://…`. Raises ConfigError if the URL is not one of these."""
        client = connect(url, password)
        return cls(client, circuit, lease_s=lease_s, key_prefix=key_prefix, remember_s=remember_s)

    async def acquire(
        self, wanted: LeaseRequest, lane: tuple[str, ...], ingress: str, min_epoch: int = 0
    ) -> Lease:
        """See Directory.acquire."""
        asked = _lease_of(wanted, lane, ingress, min_epoch)
        status, rest = await self._run("acquire", *_told(asked), *_limits(wanted.quota))
        if status == "over":
            raise QuotaExceeded(Limit(rest[0]), wanted.quota)
        lease = _lease(rest[0])
        if status == "held":
            raise LeaseHeld(lease)
        return lease

    async def renew(self, lease: Lease) -> Lease:
        """See Directory.renew."""
        (answer,) = await self.renew_all([lease])
        if isinstance(answer, LeaseLost):
            raise answer
        return answer

    async def renew_all(self, leases: Sequence[Lease]) -> Sequence[Lease | LeaseLost]:
        """See Directory.renew_all."""
        assert len(leases) <= MAX_RENEWED, f"{len(leases)} leases would keep the store from others"
        _, rows = await self._run("renew_all", *(argument for lease in leases for argument in _told(lease)))
        return [_renewed(lease, row) for lease, row in zip(leases, rows, strict=True)]

    async def move(self, lease: Lease, *, lane: tuple[str, ...], ingress: str, min_epoch: int = 0) -> Lease:
        """See Directory.move."""
        return _in_force(await self._run("move", *_told(lease), json.dumps(lane), ingress, min_epoch))

    async def charge(self, lease: Lease, load: Load, quota: Quota) -> Lease:
        """See Directory.charge."""
        answer = await self._run("charge", *_told(replace(lease, load=load)), *_limits(quota))
        status, rest = answer
        if status == "over":
            raise QuotaExceeded(Limit(rest[0]), quota)
        return _in_force(answer)

    async def release(self, lease: Lease) -> None:
        """See Directory.release."""
        await self._run("release", *_told(lease))

    async def owner_of(self, session_id: str) -> Owner | None:
        """See Directory.owner_of."""
        _, rest = await self._run("owner", session_id)
        return Owner(_lease(rest[0]), rest[1]) if rest else None

    async def list(self, tenant: str | None) -> Sequence[Lease]:
        """See Directory.list."""
        return await self._listed("sessions" if tenant is None else f"tenant:{tenant}")

    async def leases_on(self, replica_id: str) -> Sequence[Lease]:
        """See Directory.leases_on."""
        return await self._listed(f"replica:{replica_id}")

    async def usage_by_replica(self) -> Mapping[str, Usage]:
        """See Directory.usage_by_replica."""
        _, rows = await self._run("usage")
        return {row[0]: Usage(int(row[1]), Load(float(row[2]), float(row[3]))) for row in rows}

    async def announce(self, ingress: str, address: str) -> bool:
        """See Directory.announce."""
        status, _ = await self._run("announce", ingress, address)
        return status == "ok"

    async def publish(self, leases: Collection[Lease]) -> None:
        """See Directory.publish."""
        await self._run("publish", *(argument for lease in leases for argument in _told(lease)))

    async def reopen(self, held: Collection[str]) -> bool:
        """See Directory.reopen."""
        status, _ = await self._run("reopen", *held)
        return status == "ok"

    async def claim(self, key: str, owner: str, ttl_s: float) -> Claim:
        """See Claims.claim."""
        assert owner, f"{key} is claimed by nobody"
        _, rest = await self._run("claim", key, owner, 0, round(ttl_s * 1000))
        return _claim(rest[0])

    async def keep_claim(self, claim: Claim, ttl_s: float) -> Claim | None:
        """See Claims.keep_claim."""
        status, rest = await self._run("claim", claim.key, "", claim.number, round(ttl_s * 1000))
        return None if status == "lost" else _claim(rest[0])

    async def drop_claim(self, claim: Claim) -> None:
        """See Claims.drop_claim."""
        await self._run("claim", claim.key, "", claim.number, 0)

    async def claims(self, prefix: str = "") -> Sequence[Claim]:
        """See Claims.claims."""
        _, rows = await self._run("claims", prefix)
        return sorted((_claim(row) for row in rows), key=lambda claim: claim.key)

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def _listed(self, index: str) -> Sequence[Lease]:
        _, rows = await self._run("list", index)
        return sorted(map(_lease, rows), key=lambda lease: (lease.open_time_s, lease.session_id))

    async def _run(self, script: str, *args: Argument) -> Answer:
        """Raises DirectoryUnavailable, and DirectoryEmpty where a script refuses."""
        nonce = uuid.uuid4().hex
        status, *rest = await self._connection.ask(lambda: self._call(script, nonce, *args))
        if status == "empty":
            raise DirectoryEmpty
        return status, rest

    async def _call(self, script: str, nonce: str, *args: Argument) -> Any:
        keys = [f"{self._prefix}:incarnation"]
        first: Sequence[Argument] = [self._prefix, self._lease_ms, self._remember_ms, nonce]
        return await self._scripts[script](keys=keys, args=(*first, *args))


def _script(client: Redis, path: Path) -> AsyncScript:
    common = path.with_name("common.lua").read_text(encoding="utf-8")
    return client.register_script(f"{common}\n{path.read_text(encoding='utf-8')}")


def _lease_of(wanted: LeaseRequest, lane: tuple[str, ...], ingress: str, min_epoch: int) -> Lease:
    """What is asked for, as the scripts take leases; its times are not looked at."""
    w = wanted
    return Lease(w.session_id, w.tenant, lane, ingress, min_epoch, 0.0, 0.0, w.load, w.token_sha256)


def _told(lease: Lease) -> Iterable[Argument]:
    """A lease as the scripts take it; floats with all their digits."""
    head = (lease.session_id, lease.epoch, lease.tenant, _text_of(lease.lane), lease.ingress)
    load = (repr(lease.load.frames_per_s), repr(lease.load.pixels_per_s))
    return (*head, round(lease.open_time_s * 1000), *load, lease.token_sha256)


def _limits(quota: Quota) -> Iterable[Argument]:
    return (repr(min(most, NO_LIMIT)) for most in (quota.sessions, quota.frames_per_s, quota.pixels_per_s))


def _lease(row: Sequence[Any]) -> Lease:
    session_id, epoch, tenant, lane, ingress, expiry, open_time, frames, pixels, token = row
    return Lease(
        session_id=session_id,
        tenant=tenant,
        lane=tuple(json.loads(lane)),
        ingress=ingress,
        epoch=int(epoch),
        expiry_s=int(expiry) / 1000,
        open_time_s=int(open_time) / 1000,
        load=Load(float(frames), float(pixels)),
        token_sha256=token,
    )


def _in_force(answer: Answer) -> Lease:
    status, rest = answer
    lease = _lease(rest[0]) if rest else None
    if status == "lost":
        raise LeaseLost(lease)
    assert lease is not None, f"a transition answered {status} without a lease"
    return lease


def _renewed(lease: Lease, row: Sequence[Any]) -> Lease | LeaseLost:
    if row[0] == "ok":
        return replace(lease, expiry_s=int(row[1]) / 1000)
    return LeaseLost(_lease(row[1]) if len(row) > 1 else None)


@lru_cache(4096)
def _text_of(lane: tuple[str, ...]) -> str:
    """Many sessions share a lane."""
    return json.dumps(lane)


def _claim(row: Sequence[Any]) -> Claim:
    key, owner, number, expiry = row
    return Claim(key, owner, int(number), int(expiry) / 1000)
