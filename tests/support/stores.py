"""Both stores of leases, so that a test can let time pass, lose what was written, or lose everything."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import redis
from rearview.config import DirectoryConfig
from rearview.control.circuit import Circuit
from rearview.directory import Directory, MemoryDirectory, open_directory

__all__ = ["LEASE_S", "MemoryStore", "RedisStore", "Store"]

LEASE_S = 15.0
_MEMORY_STATE = ("_is_open", "_empty_since_s", "_entries", "_claims", "_addresses")


class Store(Protocol):
    """One store of leases, and what may happen to it."""

    def open(self) -> Directory:
        """A handle: what one ingress would hold."""

    def now(self) -> float:
        """The store's clock."""

    def advance(self, seconds: float) -> None:
        """Let time pass."""

    def snapshot(self) -> Any:
        """All that is stored."""

    def restore(self, snapshot: Any) -> None:
        """Lose what was written since: a failover."""

    def flush(self) -> None:
        """Lose everything: a server that comes back empty."""

    async def close(self) -> None:
        """Close the handles."""


class MemoryStore:
    """`MemoryDirectory` under virtual time."""

    def __init__(self, lease_s: float = LEASE_S) -> None:
        self._now = 1_763_000_000.125
        self._directory = MemoryDirectory(lease_s=lease_s, clock=self.now)
        self._empty = self.snapshot()

    def open(self) -> Directory:
        return self._directory

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def snapshot(self) -> Any:
        return {name: copy.copy(getattr(self._directory, name)) for name in _MEMORY_STATE}

    def restore(self, snapshot: Any) -> None:
        for name in _MEMORY_STATE:
            setattr(self._directory, name, copy.copy(snapshot[name]))

    def flush(self) -> None:
        self.restore(self._empty)
        self._directory._is_open = False

    async def close(self) -> None:
        await self._directory.close()


class RedisStore:
    """A prefix of a real server. Time passes by making everything stored older."""

    def __init__(self, url: str, lease_s: float = LEASE_S) -> None:
        self.url, self._lease_s = url, lease_s
        self.prefix = f"t-{uuid.uuid4().hex}"
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self._raw = redis.Redis.from_url(url)
        self.client.set(f"{{{self.prefix}}}:incarnation", "a test's")
        self._handles: list[Directory] = []

    def open(self) -> Directory:
        config = DirectoryConfig(redis_url=self.url, lease_s=self._lease_s, key_prefix=self.prefix)
        self._handles.append(open_directory(config, Circuit()))
        return self._handles[-1]

    def now(self) -> float:
        seconds, micros = self.client.time()
        return float(seconds) + micros // 1000 / 1000

    def stored(self) -> Sequence[str]:
        """The names of all keys."""
        return sorted(self.client.scan_iter(f"{{{self.prefix}}}:*"))

    def advance(self, seconds: float) -> None:
        aged_ms = round(seconds * 1000)
        for key in self.stored():
            left_ms = self.client.pttl(key)
            if 0 <= left_ms <= aged_ms:
                self.client.delete(key)
                continue
            self._age(key, aged_ms)
            if left_ms >= 0:
                self.client.pexpire(key, left_ms - aged_ms)

    def _age(self, key: str, aged_ms: int) -> None:
        match self.client.type(key):
            case "hash" if self.client.hexists(key, "expiry"):
                self.client.hincrby(key, "expiry", -aged_ms)
            case "zset":
                for member in self.client.zrange(key, 0, -1):
                    self.client.zincrby(key, -aged_ms, member)
            case "string" if key.endswith(":empty-since"):
                self.client.decrby(key, aged_ms)

    def snapshot(self) -> Any:
        return [(key, self._raw.dump(key), max(0, self._raw.pttl(key))) for key in self.stored()]

    def restore(self, snapshot: Any) -> None:
        self._delete_all()
        for key, content, left_ms in snapshot:
            self._raw.restore(key, left_ms, content)

    def flush(self) -> None:
        self._delete_all()
        self.client.script_flush()

    def _delete_all(self) -> None:
        if keys := self.stored():
            self.client.delete(*keys)

    async def close(self) -> None:
        for handle in self._handles:
            await handle.close()
        self.client.close()
        self._raw.close()
