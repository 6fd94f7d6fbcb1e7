"""Which rows share the next forward. No I/O, no clock: `now` is an argument.

Fairness picks the tenant (least service received for its weight), earliest deadline first orders
inside it, and the batch grows over all tenants until the earliest deadline in it would be missed, by
the cost table. A row that would be late even alone counts as late, and its batch grows to the best
throughput instead of collapsing to one. No group waits for more than `max_wait_forwards` forwards.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rearview.engine.rows import Row

__all__ = ["CostTable", "Scheduler"]


@dataclass(frozen=True)
class CostTable:
    """t(group, rows, writes due), seconds, measured at start-up; piecewise linear in rows."""

    forward_s: Mapping[Hashable, Mapping[int, float]] = field(default_factory=dict)
    """Per group: seconds of one forward by number of rows."""
    write_s: float = 0.0
    """Extra seconds per row whose write is due."""

    def seconds(self, group: Hashable, rows: int, writes: int = 0) -> float:
        """Cost of a forward. An unknown group is free, so that nothing is held back for it."""
        points = sorted(self.forward_s.get(group, {}).items())
        return _interpolate(points, rows) + writes * self.write_s if points else 0.0


def _interpolate(points: Sequence[tuple[int, float]], rows: int) -> float:
    if rows <= points[0][0]:
        return points[0][1]
    for (n0, t0), (n1, t1) in pairwise(points):
        if rows <= n1:
            return t0 + (t1 - t0) * (rows - n0) / (n1 - n0)
    if len(points) == 1:
        return points[0][1] * rows / points[0][0]
    (n0, t0), (n1, t1) = points[-2:]
    return t1 + (t1 - t0) / (n1 - n0) * (rows - n1)


class Scheduler:
    """Chooses batches and remembers who was served."""

    def __init__(self, costs: CostTable, max_batch: int, max_wait_forwards: int = 8) -> None:
        self.costs = costs
        self._max_batch = max_batch
        self._max_wait = max_wait_forwards
        self._served: dict[str, float] = {}
        """Seconds of service by weight, per tenant that has had rows lately."""
        self._waited: dict[Hashable, int] = {}
        """Forwards that a ready group has waited."""

    def choose(self, ready: Sequence[Row], now: float) -> list[Row]:
        """The rows of the next forward, all of one group; empty iff `ready` is. Charges their tenants."""
        if not ready:
            self._waited.clear()
            return []
        self._welcome(ready)
        head = self._head(ready)
        if head.frame.failures:  # It failed before: whoever shared its batch is innocent.
            batch = [head]
        else:
            peers = [r for r in ready if r.group == head.group and r is not head and not r.frame.failures]
            batch = self._grow(head, sorted(peers, key=_urgency), now)
        self._charge(batch)
        self._age(ready, head.group)
        return batch

    def _welcome(self, ready: Sequence[Row]) -> None:
        """A tenant that was away starts level with the least served: idleness earns no credit."""
        present = {row.frame.spec.tenant for row in ready}
        known = [self._served[tenant] for tenant in present if tenant in self._served]
        level = min(known, default=0.0)
        self._served = {tenant: self._served.get(tenant, level) for tenant in present}

    def _head(self, ready: Sequence[Row]) -> Row:
        starving = [row for row in ready if self._waited.get(row.group, 0) >= self._max_wait]
        rows = starving or ready
        return min(rows, key=lambda row: (self._served[row.frame.spec.tenant], *_urgency(row)))

    def _grow(self, head: Row, peers: Sequence[Row], now: float) -> list[Row]:
        room = min(self._max_batch, 1 + len(peers))
        if now + self._cost([head]) > head.due_s:
            return [head, *peers[: self._best_throughput(head, room) - 1]]
        batch, earliest = [head], head.due_s
        for row in peers[: room - 1]:
            earliest_then = min(earliest, row.due_s) if not self._is_late(row, now) else earliest
            if now + self._cost([*batch, row]) > earliest_then:
                break
            batch.append(row)
            earliest = earliest_then
        return batch

    def _is_late(self, row: Row, now: float) -> bool:
        return now + self._cost([row]) > row.due_s

    def _best_throughput(self, head: Row, room: int) -> int:
        """The number of rows, up to `room`, that a second of this group does most of."""

        def rate(rows: int) -> float:
            cost = self.costs.seconds(head.group, rows)
            return rows / cost if cost else float(rows)

        return max(range(1, room + 1), key=rate)

    def _cost(self, rows: Sequence[Row]) -> float:
        return self.costs.seconds(rows[0].group, len(rows), sum(row.write_due for row in rows))

    def _charge(self, batch: Sequence[Row]) -> None:
        share = (self._cost(batch) or float(len(batch))) / len(batch)
        for row in batch:
            self._served[row.frame.spec.tenant] += share / row.frame.spec.weight

    def _age(self, ready: Sequence[Row], chosen: Hashable) -> None:
        groups = {row.group for row in ready}
        self._waited = {group: self._waited.get(group, 0) + 1 for group in groups if group != chosen}


def _urgency(row: Row) -> tuple[float, int, int, str]:
    """Earliest due first; then the frame that is furthest, so that pictures come out one by one."""
    return row.due_s, -row.frame.position, row.ordinal, row.session_id
