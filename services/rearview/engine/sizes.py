"""How many samples a forward of each group may have: fewer than allowed where memory did not suffice.

A size that did not fit is halved, and not formed again for a while. After `FIRST_WAIT_S` the next size up is
tried, half way to the one that failed and at last that one: so the largest that works is found, and a failure
that had a passing cause (another process on the device, memory in pieces) is forgotten. Each trial that fails
doubles the wait. What surprises: a session that closes changes nothing. Its slot goes back to a pool that was
allocated at start, so no memory is free for forwards that was not before.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

__all__ = ["FIRST_WAIT_S", "MAX_WAIT_S", "BatchSizes", "padded_size"]

FIRST_WAIT_S = 60.0
MAX_WAIT_S = 3600.0
"""A trial that fails costs a forward, and on a device also the memory that was cached there."""


def padded_size(samples: int, sizes: Sequence[int]) -> int:
    """How many samples a forward of so many is filled up to: the next of `sizes`, which ascend. A larger one
    is not.
    """
    return next((size for size in sizes if size >= samples), samples)


@dataclass(slots=True)
class _Limit:
    """Of a group of which a forward did not fit."""

    most: int
    """Samples that are allowed."""
    failed: int
    """Samples that did not fit; more than `most`."""
    since_s: float
    wait_s: float

    def at(self, now: float) -> int:
        """Samples that may be tried now."""
        return self.most if now - self.since_s < self.wait_s else (self.most + self.failed + 1) // 2


class BatchSizes:
    """What was learned of each group. `now`: seconds on one monotonic clock."""

    def __init__(self, max_batch: int) -> None:
        """`max_batch`: samples of any forward that has more than one row."""
        self._max_batch = max_batch
        self._limits: dict[Hashable, _Limit] = {}

    def most(self, group: Hashable, now: float) -> int:
        """Samples that the next forward of the group may have; a row that is wider runs alone."""
        limit = self._limits.get(group)
        return self._max_batch if limit is None else min(self._max_batch, limit.at(now))

    def ran(self, group: Hashable, samples: int, now: float) -> None:
        """A forward has succeeded."""
        limit = self._limits.get(group)
        if limit is None or samples <= limit.most:
            return
        limit.most, limit.since_s = samples, now
        if samples >= limit.failed:
            del self._limits[group]

    def did_not_fit(self, group: Hashable, samples: int, now: float) -> int:
        """There was no memory for a forward of more than one row; returns what is allowed from now on."""
        limit = self._limits.get(group)
        if limit is None or samples <= limit.most:
            limit = self._limits[group] = _Limit(max(1, samples // 2), samples, now, FIRST_WAIT_S)
        else:
            limit.failed, limit.since_s = samples, now
            limit.wait_s = min(MAX_WAIT_S, 2 * limit.wait_s)
        return limit.most
