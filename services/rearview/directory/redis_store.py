"""A directory in Redis or Valkey, shared by several ingresses.

Every transition is one Lua script (`scripts/`), so two ingresses cannot both own a session. A call whose
answer was lost is sent again by the client library; a nonce makes the script recognise it. Every key has
a time to live of `remember_s`, far beyond `lease_s`: keys that vanish are those of owners long dead.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from rearview.directory.protocol import (
    REMEMBER_S,
    DirectoryUnavailable,
    Lease,
    LeaseHeld,
    LeaseLost,
)
from rearview.errors import ConfigError

if TYPE_CHECKING:
    from redis.commands.core import AsyncScript

__all__ = ["RedisDirectory"]

SOCKET_TIMEOUT_S = 1.0
"""A server that does not answer for so long has lost this connection."""
HEALTH_CHECK_INTERVAL_S = 15
"""A connection idle for so long is tried with PING before it is used."""
RETRIES = 3
"""Attempts after the first; with `SOCKET_TIMEOUT_S` they stay well inside a lease."""
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.02, 0.25

_UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.OutOfMemoryError,
)
_FIELDS = ("epoch", "tenant", "lane", "ingress", "expiry", "open_time")
_SCRIPTS = Path(__file__).parent / "scripts"


class RedisDirectory:
    """Leases in Redis. See `Directory` for what each method promises."""

    def __init__(
        self, client: Redis, *, lease_s: float, key_prefix: str, remember_s: float = REMEMBER_S
    ) -> None:
        """`client` must decode responses; it is closed by `close`."""
        assert remember_s > lease_s, f"remember_s {remember_s} <= lease_s {lease_s}"
        self._client = client
        self._lease_s = lease_s
        self._remember_s = remember_s
        self._prefix = f"{{{key_prefix}}}"  # in braces: one hash slot for all keys
        self._scripts = {name: _script(client, name) for name in ("acquire", "renew", "move", "release")}

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        lease_s: float,
        key_prefix: str,
        password: str | None = None,
        remember_s: float = REMEMBER_S,
    ) -> RedisDirectory:
        """For `redis://…` or `rediss://…`. Raises ConfigError if the URL is not one of these.

        `password` is for a URL without one; the URL's own goes first.
        """
        try:
            if not url.startswith(("redis://", "rediss://")):
                raise ValueError
            client = Redis.from_url(
                url,
                password=password,
                decode_responses=True,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                socket_keepalive=True,
                health_check_interval=HEALTH_CHECK_INTERVAL_S,
                retry=Retry(ExponentialWithJitterBackoff(cap=BACKOFF_CAP_S, base=BACKOFF_BASE_S), RETRIES),
            )
        except ValueError:
            # Without the cause: the URL may hold a password.
            raise ConfigError("directory.redis_url: not a redis:// or rediss:// URL") from None
        return cls(client, lease_s=lease_s, key_prefix=key_prefix, remember_s=remember_s)

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
        times = self._times(now)
        args = (tenant, json.dumps(lane), ingress, *times, min_epoch, int(takeover))
        status, lease = await self._run("acquire", session_id, *args)
        assert lease is not None, f"acquire answered {status} without a lease"
        if status == "held":
            raise LeaseHeld(lease)
        return lease

    async def renew(self, session_id: str, epoch: int, now: float) -> Lease:
        """See Directory.renew."""
        status, lease = await self._run("renew", session_id, epoch, *self._times(now))
        return _in_force(status, lease)

    async def move(
        self, session_id: str, epoch: int, lane: tuple[str, ...], ingress: str, now: float
    ) -> Lease:
        """See Directory.move."""
        args = (epoch, json.dumps(lane), ingress, *self._times(now))
        status, moved = await self._run("move", session_id, *args)
        return _in_force(status, moved)

    async def release(self, session_id: str, epoch: int) -> None:
        """See Directory.release."""
        await self._run("release", session_id, epoch)

    async def get(self, session_id: str) -> Lease | None:
        """See Directory.get."""
        return (await self._read([session_id]))[0]

    async def list(self, tenant: str | None) -> list[Lease]:
        """See Directory.list."""
        index = "sessions" if tenant is None else f"tenant:{tenant}"
        async with _available():
            session_ids: Any = await self._client.zrange(f"{self._prefix}:{index}", 0, -1)
        leases = (lease for lease in await self._read(session_ids) if lease is not None)
        chosen = (lease for lease in leases if tenant is None or lease.tenant == tenant)
        return sorted(chosen, key=lambda lease: (lease.open_time_s, lease.session_id))

    async def sessions_by_replica(self) -> Mapping[str, int]:
        """See Directory.sessions_by_replica."""
        async with _available():
            replicas: Any = await self._client.zrange(f"{self._prefix}:replicas", 0, -1)
            async with self._client.pipeline(transaction=False) as pipe:
                for replica in replicas:
                    pipe.zcard(f"{self._prefix}:replica:{replica}")
                counts = await pipe.execute()
        return {replica: count for replica, count in zip(replicas, counts, strict=True) if count}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _times(self, now: float) -> tuple[str, str, str]:
        """now, expiry, forget. As text, since Lua's own formatting keeps 14 digits."""
        return repr(now), repr(now + self._lease_s), repr(now + self._remember_s)

    async def _run(self, script: str, session_id: str, *args: str | int) -> tuple[str, Lease | None]:
        remember_ms = int(self._remember_s * 1000)
        async with _available():
            status, *row = await self._scripts[script](
                keys=[f"{self._prefix}:lease:{session_id}"],
                args=[self._prefix, session_id, remember_ms, uuid.uuid4().hex, *args],
            )
        return status, _lease(session_id, row)

    async def _read(self, session_ids: Sequence[str]) -> Sequence[Lease | None]:
        async with _available(), self._client.pipeline(transaction=False) as pipe:
            for session_id in session_ids:
                pipe.hmget(f"{self._prefix}:lease:{session_id}", list(_FIELDS))
            rows = await pipe.execute()
        return [_lease(session_id, row) for session_id, row in zip(session_ids, rows, strict=True)]


@asynccontextmanager
async def _available() -> AsyncIterator[None]:
    try:
        yield
    except _UNAVAILABLE as error:
        raise DirectoryUnavailable from error


def _script(client: Redis, name: str) -> AsyncScript:
    text = "\n".join((_SCRIPTS / f"{part}.lua").read_text(encoding="utf-8") for part in ("common", name))
    return client.register_script(text)


def _lease(session_id: str, row: Sequence[Any]) -> Lease | None:
    """`row` in the order of `_FIELDS`; empty, or without a tenant, when there is no lease."""
    if len(row) < len(_FIELDS) or row[1] is None:
        return None
    epoch, tenant, lane, ingress, expiry, open_time = row
    return Lease(
        session_id=session_id,
        tenant=tenant,
        lane=tuple(json.loads(lane)),
        ingress=ingress,
        epoch=int(epoch),
        expiry_s=float(expiry),
        open_time_s=float(open_time),
    )


def _in_force(status: str, lease: Lease | None) -> Lease:
    if status == "lost":
        raise LeaseLost(lease)
    assert lease is not None, f"a transition answered {status} without a lease"
    return lease
