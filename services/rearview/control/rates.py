"""How often something may happen. `now` is monotonic seconds."""

from __future__ import annotations

import math

__all__ = ["BURST_S", "Bucket"]

BURST_S = 1.0
"""Seconds' worth that may come at once."""


class Bucket:
    """A token bucket that begins full. It may be overdrawn, where what has come cannot be sent back."""

    def __init__(self, burst_s: float = BURST_S) -> None:
        """`burst_s`: seconds' worth that it holds; one token at least."""
        self._burst_s = burst_s
        self._tokens, self._updated_s = math.inf, -math.inf

    def wait_s(self, rate: float, now: float, tokens: float = 1.0) -> float:
        """Seconds until there are so many tokens, at `rate` a second; 0: there are."""
        capacity, updated_s = max(1.0, rate * self._burst_s), max(now, self._updated_s)
        self._tokens = min(capacity, self._tokens + (updated_s - self._updated_s) * rate)
        self._updated_s = updated_s
        return max(0.0, (tokens - self._tokens) / rate)

    def spend(self, tokens: float = 1.0) -> None:
        """Take them."""
        self._tokens -= tokens
