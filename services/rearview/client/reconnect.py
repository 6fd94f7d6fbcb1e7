"""When to try again after a lost connection, and when to give up. No clock, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Attempts", "Reconnect"]


@dataclass(frozen=True, kw_only=True)
class Reconnect:
    """How a lost connection is sought again: exponential back-off with jitter, up to a cap."""

    first_wait_s: float = 0.05
    max_wait_s: float = 2.0
    give_up_after_s: float | None = None
    """Counted from the loss, and again after every answer. None: the server's grace time."""
    open_timeout_s: float = 10.0
    """How long an unreachable server is sought, and how long it may take to answer `open` or `resume`."""
    accept_timeout_s: float = 1.0
    """How long a server may take to show that it is there, before the next address is tried. Twice as long
    after every third attempt that failed, up to `open_timeout_s`: all of them may be slow."""

    def limit_s(self, grace_s: float | None) -> float:
        """How long a connection is sought for a session with this grace time; None: it is not open yet."""
        if grace_s is None:
            return self.open_timeout_s
        return grace_s if self.give_up_after_s is None else self.give_up_after_s


class Attempts:
    """The attempts since the connection was last good. `now` is any clock in seconds."""

    def __init__(self, policy: Reconnect) -> None:
        self._policy = policy
        self._count = 0
        self._lost_s: float | None = None

    def renew(self) -> None:
        """The connection was good: former failures no longer count."""
        self._count, self._lost_s = 0, None

    @property
    def accept_s(self) -> float:
        """How long the next attempt waits for the server to show that it is there."""
        policy = self._policy
        return min(policy.open_timeout_s, policy.accept_timeout_s * 2.0 ** min(self._count // 3, 30))

    def stood(self, for_s: float) -> None:
        """A connection is lost after so long: one that outlasted any wait was good."""
        if for_s > self._policy.max_wait_s:
            self.renew()

    def wait_s(self, now: float, limit_s: float, retry_after_s: float | None) -> float | None:
        """How long to wait before the next attempt, at least `retry_after_s`; None: give up.

        It is given up when the attempt would begin more than `limit_s` after the first failure.
        """
        self._lost_s = now if self._lost_s is None else self._lost_s
        cap = min(self._policy.max_wait_s, self._policy.first_wait_s * 2.0 ** min(self._count, 30))
        # Half of it at random: clients cut off together must not come back together.
        wait_s = max(cap * random.uniform(0.5, 1.0), retry_after_s or 0.0)
        self._count += 1
        return wait_s if now + wait_s - self._lost_s <= limit_s else None
