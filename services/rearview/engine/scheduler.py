"""Which rows share the next forward. No I/O, no clock: `now` is an argument.

Fairness orders the tenants (least service received for its weight), earliest deadline first orders
inside each, and the batch grows in that order until the earliest deadline in it would be missed, by the
cost table. A row that would be late even alone counts as late, and its batch grows to the best
throughput instead of collapsing to one. No group waits for more than `max_wait_forwards` forwards.

Service is remembered as in start-time fair queueing: who had all its rows taken, or had none, goes on
from the level of those who wait, so that idleness earns no credit and a pause forgives no debt.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice, pairwise
from math import inf

from rearview.engine.chain import OperatorKind
from rearview.engine.rows import Row

__all__ = ["CostTable", "Scheduler"]


@dataclass(frozen=True)
class CostTable:
    """t(group, rows, writes due), seconds, measured at start-up; piecewise linear in rows."""

    forward_s: Mapping[Hashable, Mapping[int, float]] = field(default_factory=dict)
    """Per group: seconds of one forward by number of rows. A larger batch counts as no cheaper."""
    write_s: float = 0.0
    """Extra seconds per row whose write is due."""

    def seconds(self, group: Hashable, rows: int, writes: int = 0) -> float:
        """Cost of a forward. An unknown group is free, so that nothing is held back for it."""
        points = self._points.get(group)
        return _interpolate(points, rows) + writes * self.write_s if points else 0.0

    def service(self, group: Hashable, rows: int, writes: int = 0) -> float:
        """What a tenant is charged: the cost, for an unknown group that of the dearest one."""
        if group in self._points:
            return self.seconds(group, rows, writes)
        return max((self.seconds(known, rows, writes) for known in self._points), default=float(rows))

    @cached_property
    def _points(self) -> Mapping[Hashable, Sequence[tuple[int, float]]]:
        # Measured times fall now and then where they should rise; a line through them would go below zero.
        return {
            group: list(zip(sorted(times), accumulate((times[n] for n in sorted(times)), max), strict=True))
            for group, times in self.forward_s.items()
        }


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
        """Seconds of service by weight: of tenants with ready rows, and of those above `_level`."""
        self._level = 0.0
        """Least service among the tenants whose rows had to wait at the last choice."""
        self._waited: dict[Hashable, int] = {}
        """Forwards that a ready group has waited."""

    def choose(self, ready: Sequence[Row], now: float) -> list[Row]:
        """The rows of the next forward, all of one group; empty iff `ready` is. Charges their tenants."""
        if not ready:
            self._waited.clear()
            return []
        self._welcome(ready)
        head = self._head(ready, now)
        if head.frame.failures:  # It failed before: whoever shared its batch is innocent.
            batch = [head]
        else:
            batch = self._grow([r for r in ready if r.group == head.group and not r.frame.failures], now)
        self._charge(batch, ready)
        self._age(ready, head.group)
        return batch

    def _welcome(self, ready: Sequence[Row]) -> None:
        """Tenants that were away, or had nothing left to wish for, go on from the level of the others."""
        owing = {tenant: served for tenant, served in self._served.items() if served > self._level}
        present = {row.frame.spec.tenant for row in ready}
        self._served = {**dict.fromkeys(present, self._level), **owing}

    def _head(self, ready: Sequence[Row], now: float) -> Row:
        overdue = self._overdue({row.group for row in ready})
        if overdue is not None:
            return self._first([row for row in ready if row.group == overdue])
        head = self._first(ready)
        feeders = [row for row in ready if row.operator.kind is OperatorKind.ENCODE]
        return self._first(feeders) if feeders and self._is_worth_feeding(head, feeders, ready, now) else head

    def _first(self, rows: Sequence[Row]) -> Row:
        return min(rows, key=lambda row: (self._served[row.frame.spec.tenant], _urgency(row)))

    def _is_worth_feeding(self, head: Row, feeders: Sequence[Row], ready: Sequence[Row], now: float) -> bool:
        """Whether to encode before denoising: what was just encoded joins the forward and spares its own.

        Not if the encoding takes longer than it spares (without a gain from batching), nor if it makes
        `head` late.
        """
        if head.operator.kind is not OperatorKind.DENOISE or head.frame.failures:
            return False
        cost, joining = self.costs.seconds, min(len(feeders), self._max_batch)
        here = sum(row.group == head.group for row in ready)
        if here + joining > self._max_batch:
            return False
        encode_s, together_s = cost(feeders[0].group, joining), cost(head.group, here + joining)
        apart_s = cost(head.group, here) + cost(head.group, joining)
        is_late = now + cost(head.group, 1) > head.due_s
        return encode_s < apart_s - together_s and (is_late or now + encode_s + together_s <= head.due_s)

    def _overdue(self, groups: set[Hashable]) -> Hashable | None:
        """The group that has waited longest, if waiting more would break the bound for it or another."""
        longest_first = sorted(groups, key=lambda group: -self._waited.get(group, 0))
        is_due = any(self._waited.get(g, 0) + i >= self._max_wait for i, g in enumerate(longest_first))
        return longest_first[0] if is_due and len(groups) > 1 else None

    def _grow(self, rows: Sequence[Row], now: float) -> list[Row]:
        group, room = rows[0].group, min(self._max_batch, len(rows))
        candidates = self._in_turn(rows, self.costs.service(group, room) / room)
        head = next(candidates)
        batch, writes = [head], int(head.write_due)
        if now + self.costs.seconds(group, 1, writes) > head.due_s:
            return [head, *islice(candidates, self._best_throughput(group, room) - 1)]
        deadlines = {head.later: head.frame.deadline_s}
        for row in islice(candidates, room - 1):
            writes += row.write_due
            done_s = now + self.costs.seconds(group, len(batch) + 1, writes)
            if done_s > self._earliest_due(deadlines, len(batch)):
                break
            batch.append(row)
            if done_s <= row.due_s:  # Else it is late already and holds nobody back.
                deadlines[row.later] = min(row.frame.deadline_s, deadlines.get(row.later, inf))
        return batch

    def _earliest_due(self, deadlines: Mapping[tuple[Hashable, ...], float], rows: int) -> float:
        """When a forward must end for `deadlines`, by what is left to do, if its `rows` stay together."""
        return min(
            deadline_s - sum(self.costs.seconds(group, rows) for group in later)
            for later, deadline_s in deadlines.items()
        )

    def _in_turn(self, rows: Sequence[Row], share_s: float) -> Iterator[Row]:
        """`rows` as tenants would get them one by one, each charged `share_s`; urgent ones first inside."""
        queues: dict[str, list[Row]] = {}
        for row in sorted(rows, key=_urgency, reverse=True):
            queues.setdefault(row.frame.spec.tenant, []).append(row)
        turns = [(self._served[name], _urgency(queue[-1]), name) for name, queue in queues.items()]
        heapq.heapify(turns)
        while turns:
            served, _, name = turns[0]
            row = queues[name].pop()
            if queues[name]:
                served += share_s / row.frame.spec.weight
                heapq.heapreplace(turns, (served, _urgency(queues[name][-1]), name))
            else:
                heapq.heappop(turns)
            yield row

    def _best_throughput(self, group: Hashable, room: int) -> int:
        """The number of rows, up to `room`, that a second of this group does most of."""

        def rate(rows: int) -> float:
            cost = self.costs.seconds(group, rows)
            return rows / cost if cost else float(rows)

        return max(range(1, room + 1), key=rate)

    def _charge(self, batch: Sequence[Row], ready: Sequence[Row]) -> None:
        writes = sum(row.write_due for row in batch)
        share_s = self.costs.service(batch[0].group, len(batch), writes) / len(batch)
        for row in batch:
            self._served[row.frame.spec.tenant] += share_s / row.frame.spec.weight
        taken = {id(row) for row in batch}
        waiting = {row.frame.spec.tenant for row in ready if id(row) not in taken}
        # Where nobody waits nobody was served at another's cost: all are level again.
        self._level = min((self._served[name] for name in waiting), default=max(self._served.values()))

    def _age(self, ready: Sequence[Row], chosen: Hashable) -> None:
        groups = {row.group for row in ready}
        self._waited = {group: self._waited.get(group, 0) + 1 for group in groups if group != chosen}


_Urgency = tuple[bool, float, int, float, str, int]


def _urgency(row: Row) -> _Urgency:
    """What failed first; then what is due first; then the frame that is furthest, so that pictures come
    out one by one; then who has waited longest, so that no session is preferred.
    """
    frame = row.frame
    return (
        not frame.failures,
        row.due_s,
        -frame.position,
        frame.ready_s,
        frame.spec.session_id,
        frame.ordinal,
    )
