"""One Redis server, as far as it answers: every call ends within `ANSWER_WITHIN_S`.

A call whose connection or answer was lost is made once more. A server that does not answer then, or cannot
serve, is known to be away: calls are refused at once, while a write on trial, again and again, finds out when
it is back. When to refuse and when to try is decided by a circuit (`control/circuit.py`), which the caller
brings, since this room does not know that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import RedisError

from rearview.directory.protocol import DirectoryUnavailable
from rearview.directory.redis_errors import Kind, kind_of
from rearview.errors import ConfigError

__all__ = ["Circuit", "Connection", "connect"]

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 0.75
"""A caller knows by then; an open makes no second call where one failed, and is refused within a second."""
SOCKET_TIMEOUT_S = 0.35
"""A server that does not answer for so long has lost this connection: twice fits `ANSWER_WITHIN_S`."""
HEALTH_CHECK_INTERVAL_S = 15
"""A connection idle for so long is tried with PING before it is used."""
MAX_CONNECTIONS = 32
"""Further calls wait for one."""
RETRIES = 1
RETRY_BASE_S, RETRY_CAP_S = 0.01, 0.03
PROBE_BASE_S, PROBE_CAP_S = 0.05, 0.5
"""Between two tries of a server that is away: it is in use again so soon after it is back."""

T = TypeVar("T")


class Circuit(Protocol):
    """Decides whether a server is asked: see `rearview.control.circuit.Circuit`."""

    @property
    def failures(self) -> int: ...

    @property
    def due_s(self) -> float | None: ...

    @property
    def is_open(self) -> bool: ...

    def answered(self) -> Circuit: ...

    def failed(self, now: float, again_in_s: float) -> Circuit: ...

    def probing(self, now: float) -> Circuit | None: ...

    def probe_failed(self, now: float, again_in_s: float) -> Circuit: ...


def connect(url: str, password: str | None) -> Redis:
    """A client that makes every call once. Raises ConfigError if the URL is not redis:// or rediss://.

    `password` is for a URL without one; the URL's own goes first.
    """
    try:
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError
        pool = BlockingConnectionPool.from_url(
            url,
            password=password,
            decode_responses=True,
            max_connections=MAX_CONNECTIONS,
            timeout=ANSWER_WITHIN_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=HEALTH_CHECK_INTERVAL_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        # Without the cause: the URL may hold a password.
        raise ConfigError("directory.redis_url: not a redis:// or rediss:// URL") from None
    return Redis.from_pool(pool)


class Connection:
    """Calls to one server. For one event loop."""

    def __init__(self, client: Redis, circuit: Circuit, probe: Callable[[], Awaitable[object]]) -> None:
        """`probe` must fail as long as writes do. `client` is closed by `close`."""
        self._client, self._circuit, self._probe = client, circuit, probe
        retried = ExponentialWithJitterBackoff(cap=RETRY_CAP_S, base=RETRY_BASE_S)
        self._retry = Retry(retried, RETRIES, supported_errors=(RedisError, OSError))  # type: ignore[arg-type]
        self._backoff = ExponentialWithJitterBackoff(cap=PROBE_CAP_S, base=PROBE_BASE_S)
        self._probing: asyncio.Task[None] | None = None

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """The answer to `call`, which must be safe to make twice. Raises DirectoryUnavailable."""
        if self._circuit.is_open:
            self._see_to_probes()
            raise DirectoryUnavailable
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await self._retry.call_with_retry(call, _nothing, is_retryable=_is_retryable)
        except (RedisError, OSError) as error:
            if kind_of(error) is Kind.BUG:
                raise
            if not self._circuit.is_open:
                logger.warning("the session directory is away: %s", type(error).__name__)
            self._circuit = self._circuit.failed(time.monotonic(), self._backoff.compute(1))
            self._see_to_probes()
            raise DirectoryUnavailable from error
        self._circuit = self._circuit.answered()
        return answer

    async def close(self) -> None:
        """Close the connections."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._client.aclose()

    def _see_to_probes(self) -> None:
        """A server that is away is probed, whatever became of an earlier task."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_until_back())

    async def _probe_until_back(self) -> None:
        # Those that are idle may lead to a server that is a master no more. One that is frozen does not
        # answer the end of a TLS connection either.
        with contextlib.suppress(RedisError, OSError):
            await self._client.connection_pool.disconnect(inuse_connections=False)
        while self._circuit.is_open:
            due_s = self._circuit.due_s
            assert due_s is not None, "two probes at a time"
            await asyncio.sleep(due_s - time.monotonic())
            probing = self._circuit.probing(time.monotonic())
            if probing is not None:
                self._circuit = probing
                await self._probe_once()
        logger.info("the session directory answers again")

    async def _probe_once(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._probe()
        except Exception as error:  # The edge of a probe: of whatever kind, it has not been served.
            logger.debug("the session directory was probed in vain: %s", type(error).__name__)
            again_in_s = self._backoff.compute(self._circuit.failures + 1)
            self._circuit = self._circuit.probe_failed(time.monotonic(), again_in_s)
        else:
            self._circuit = self._circuit.answered()


def _is_retryable(error: Exception) -> bool:
    return kind_of(error) is Kind.RETRY


async def _nothing(_: Exception) -> None:
    """What is to be done between two tries."""
