"""Which rows share the next forward. No I/O, no clock: `now` is an argument.

Fairness orders the tenants (least service received for its weight), earliest deadline first orders
inside each, and the batch grows in that order until the earliest deadline in it would be missed, by the
cost table. A row of a frame with guidance can be two samples wide, a window row is as wide as its frames
together; costs, charges and `max_batch` count samples. A row that would be late even alone counts as
late, and its batch grows to the best throughput instead of collapsing to one. No group waits for more
than `max_wait_forwards` forwards.

Service is remembered as in start-time fair queueing: who had all its rows taken, or had none, goes on
from the level of those who wait, so that idleness earns no credit and a pause forgives no debt.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf

from rearview.contract.chain import OperatorKind
from rearview.contract.cost import FrameCost
from rearview.engine.rows import LaterRow, Row

__all__ = ["CostTable", "Scheduler"]


@dataclass(frozen=True)
class CostTable:
    """t(group, rows, writes), seconds, measured at start-up; piecewise linear in rows.

    Measured with rows of width 1, or with windows: a wider row counts as so many.
    """

    forward_s: Mapping[Hashable, Mapping[int, float]] = field(default_factory=dict)
    """Per group: seconds of one forward by number of rows. A larger batch counts as no cheaper."""
    write_s: float = 0.0
    """Extra seconds per write (`Row.writes`)."""
    frame: FrameCost | None = None
    """The same of a whole frame, for placement: nothing here depends on it."""

    def seconds(self, group: Hashable, rows: int, writes: int = 0) -> float:
        """Cost of a forward. An unknown group is free, so that nothing is held back for it."""
        points = self._points.get(group)
        return _interpolate(points, rows) + writes * self.write_s if points else 0.0

    def service(self, group: Hashable, rows: int, writes: int = 0) -> float:
        """What a tenant is charged: the cost, for an unknown group that of the dearest one."""
        if group in self._points:
            return self.seconds(group, rows, writes)
        return max((self.seconds(known, rows, writes) for known in self._points), default=float(rows))

    def row_s(self, group: Hashable) -> float:
        """Seconds of one row, in a forward as full as pays best among those measured."""
        return min((self.seconds(group, rows) / rows for rows in self.forward_s.get(group, ())), default=0.0)

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
        """`max_batch`: samples in one forward; a row that is wider runs alone."""
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
        batch = list(ready) if len(ready) == 1 else self._best(ready, now)
        self._charge(batch, ready)
        self._age(ready, batch[0].group)
        return batch

    def _welcome(self, ready: Sequence[Row]) -> None:
        """Tenants that were away, or had nothing left to wish for, go on from the level of the others."""
        owing = {tenant: served for tenant, served in self._served.items() if served > self._level}
        present = {row.frame.spec.tenant for row in ready}
        self._served = {**dict.fromkeys(present, self._level), **owing}

    def _best(self, ready: Sequence[Row], now: float) -> list[Row]:
        head = self._head(ready, now)
        if head.frame.failures:  # It failed before: whoever shared its batch is innocent.
            return [head]
        return self._grow([r for r in ready if r.group == head.group and not r.frame.failures], now)

    def _head(self, ready: Sequence[Row], now: float) -> Row:
        overdue = self._overdue({row.group for row in ready})
        if overdue is not None:
            return self._first([row for row in ready if row.group == overdue])
        head = self._first(ready)
        feeders = [
            row
            for row in ready
            if row.operator.kind is OperatorKind.ENCODE and row.later and row.later[0].group == head.group
        ]
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
        cost, fed = self.costs.seconds, feeders[: self._max_batch]
        here = _width(row for row in ready if row.group == head.group)
        joining = sum(row.later[0].width for row in fed)
        if here + joining > self._max_batch:
            return False
        encode_s, together_s = cost(feeders[0].group, len(fed)), cost(head.group, here + joining)
        apart_s = cost(head.group, here) + cost(head.group, joining)
        is_late = now + cost(head.group, head.width) > head.due_s
        return encode_s < apart_s - together_s and (is_late or now + encode_s + together_s <= head.due_s)

    def _overdue(self, groups: set[Hashable]) -> Hashable | None:
        """The group that has waited longest, if waiting more would break the bound for it or another."""
        longest_first = sorted(groups, key=lambda group: -self._waited.get(group, 0))
        is_due = any(self._waited.get(g, 0) + i >= self._max_wait for i, g in enumerate(longest_first))
        return longest_first[0] if is_due and len(groups) > 1 else None

    def _grow(self, rows: Sequence[Row], now: float) -> list[Row]:
        group, room = rows[0].group, min(self._max_batch, _width(rows))
        candidates = self._in_turn(rows, self.costs.service(group, room) / room)
        head = next(candidates)
        batch, width, writes = [head], head.width, head.writes
        if now + self.costs.seconds(group, width, writes) > head.due_s:
            return [head, *_fitting(candidates, self._best_throughput(group, room) - width)]
        deadlines = {head.later: head.frame.deadline_s}
        wider = Counter(_wider_later(head))
        for row in _fitting(candidates, room - width):
            writes += row.writes
            done_s = now + self.costs.seconds(group, width + row.width, writes)
            if done_s > self._earliest_due(deadlines, len(batch), wider):
                break
            batch.append(row)
            width += row.width
            wider.update(_wider_later(row))
            if done_s <= row.due_s:  # Else it is late already and holds nobody back.
                deadlines[row.later] = min(row.frame.deadline_s, deadlines.get(row.later, inf))
        return batch

    def _earliest_due(
        self, deadlines: Mapping[tuple[LaterRow, ...], float], rows: int, wider: Mapping[Hashable, int]
    ) -> float:
        """When a forward must end for `deadlines`, by what is left to do, if its `rows` stay together.

        `wider`: samples beyond the number of rows that they will be in a later group.
        """
        return min(
            deadline_s - sum(self.costs.seconds(group, rows + wider.get(group, 0)) for group, _ in later)
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
                served += share_s * row.width / row.frame.spec.weight
                heapq.heapreplace(turns, (served, _urgency(queues[name][-1]), name))
            else:
                heapq.heappop(turns)
            yield row

    def _best_throughput(self, group: Hashable, room: int) -> int:
        """The number of samples, up to `room`, that a second of this group does most of."""

        def rate(rows: int) -> float:
            cost = self.costs.seconds(group, rows)
            return rows / cost if cost else float(rows)

        return max(range(1, room + 1), key=rate)

    def _charge(self, batch: Sequence[Row], ready: Sequence[Row]) -> None:
        writes, width = sum(row.writes for row in batch), _width(batch)
        share_s = self.costs.service(batch[0].group, width, writes) / width
        for row in batch:
            self._served[row.frame.spec.tenant] += share_s * row.width / row.frame.spec.weight
        taken = {id(row) for row in batch}
        waiting = {row.frame.spec.tenant for row in ready if id(row) not in taken}
        # Where nobody waits nobody was served at another's cost: all are level again.
        self._level = min((self._served[name] for name in waiting), default=max(self._served.values()))

    def _age(self, ready: Sequence[Row], chosen: Hashable) -> None:
        groups = {row.group for row in ready}
        self._waited = {group: self._waited.get(group, 0) + 1 for group in groups if group != chosen}


def _width(rows: Iterable[Row]) -> int:
    return sum(row.width for row in rows)


def _fitting(rows: Iterable[Row], room: int) -> Iterator[Row]:
    """Rows in their order, as far as they fit: a narrow one does not overtake a wide one."""
    for row in rows:
        room -= row.width
        if room < 0:
            return
        yield row


def _wider_later(row: Row) -> Mapping[Hashable, int]:
    """Samples beyond one that its frame's widest later row of a group will be."""
    return {group: width - 1 for group, width in row.later if width > 1}


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
