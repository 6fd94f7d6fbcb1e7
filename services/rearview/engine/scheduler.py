"""Which rows share the next forward. No I/O, no clock: `now` is an argument.

Fairness orders the tenants (least service received for its weight), earliest deadline first orders
inside each, and the batch grows in that order until the earliest deadline in it would be missed, by the
cost table. A row of a frame with guidance can be two samples wide, a window row is as wide as its frames
together; costs, charges and `max_batch` count samples. A row that would be late even alone counts as
late, and its batch grows to the best throughput instead of collapsing to one. No group waits for more
than `max_wait_forwards` forwards. What did not fit into memory is not formed again for a while (`sizes.py`).

Service is remembered as in start-time fair queueing: who had all its rows taken, or had none, goes on
from the level of those who wait, so that idleness earns no credit and a pause forgives no debt.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice, pairwise
from math import inf

from rearview.contract.chain import OperatorKind
from rearview.contract.cost import FrameCost
from rearview.engine.course import LaterRow
from rearview.engine.queues import RowQueue, RowQueues
from rearview.engine.rows import Row
from rearview.engine.sizes import BatchSizes, padded_size

__all__ = ["CostTable", "Scheduler"]


@dataclass(frozen=True)
class CostTable:
    """t(group, rows, writes, controls, drawing), seconds, measured at start-up; piecewise linear in rows.

    Measured with rows of width 1, or with windows: a wider row counts as so many.
    """

    forward_s: Mapping[Hashable, Mapping[int, float]] = field(default_factory=dict)
    """Per group: seconds of one forward by number of rows. A larger batch counts as no cheaper."""
    write_s: float = 0.0
    """Extra seconds per write (`Row.writes`)."""
    control_s: float = 0.0
    """Extra seconds per sample of a ControlNet (`Row.controls`)."""
    ran: Mapping[Hashable, Collection[int]] = field(default_factory=dict)
    """Per group: numbers of rows with which forwards have run in this process. They are ready for more."""
    sizes: Sequence[int] = ()
    """Numbers of samples that forwards are filled up to, ascending: any other costs what the next of them
    does. None: each runs as large as it is."""
    frame: FrameCost | None = None
    """The same of a whole frame, for placement: nothing here depends on it."""
    draw_s: Mapping[str, float] = field(default_factory=dict)
    """Extra seconds of drawing what a control is shown of a frame, by its name (`Row.draws`)."""

    def seconds(
        self, group: Hashable, rows: int, writes: int = 0, controls: int = 0, drawing_s: float = 0.0
    ) -> float:
        """Cost of a forward. An unknown group is free, so that nothing is held back for it. `drawing_s`: see
        the method of that name.
        """
        points = self._points.get(group)
        if points is None:
            return 0.0
        return points.seconds(rows) + writes * self.write_s + controls * self.control_s + drawing_s

    def drawing_s(self, rows: Iterable[Row]) -> float:
        """What the rows' forward takes more because it draws pictures for their controls."""
        return sum(self.draw_s.get(name, 0.0) for row in rows for name in row.draws)

    def service(self, group: Hashable, rows: int, writes: int = 0) -> float:
        """What tenants are charged together, but for controls: the cost, for an unknown group that of the
        dearest one.
        """
        if group in self._points:
            return self.seconds(group, rows, writes)
        return max((self.seconds(known, rows, writes) for known in self._points), default=float(rows))

    def row_s(self, group: Hashable) -> float:
        """Seconds of one row, in a forward as full as pays best among those measured."""
        return min((self.seconds(group, rows) / rows for rows in self.forward_s.get(group, ())), default=0.0)

    @cached_property
    def _points(self) -> Mapping[Hashable, _Points]:
        return {group: _Points(times, self.sizes) for group, times in self.forward_s.items() if times}


class _Points:
    """Times of one group; what lies between is worked out once."""

    def __init__(self, times: Mapping[int, float], sizes: Sequence[int]) -> None:
        self._sizes = sizes
        # Measured times fall now and then where they should rise; a line through them would go below zero.
        self._points = list(
            zip(sorted(times), accumulate((times[n] for n in sorted(times)), max), strict=True)
        )
        self._known: dict[int, float] = {}

    def seconds(self, rows: int) -> float:
        """Of a forward."""
        known = self._known.get(rows)
        if known is None:
            known = self._known[rows] = _interpolate(self._points, padded_size(rows, self._sizes))
        return known


def _interpolate(points: Sequence[tuple[int, float]], rows: int) -> float:
    if rows <= points[0][0]:
        return points[0][1]
    for (n0, t0), (n1, t1) in pairwise(points):
        if rows <= n1:
            return t0 + (t1 - t0) * (rows - n0) / (n1 - n0)
    if len(points) == 1:
        return points[0][1] * rows / points[0][0]
    (n0, t0), (n1, t1) = points[-2:]
    # One forward costs no more than several: a larger time at n1 may be another process's fault.
    return min(t1 + (t1 - t0) / (n1 - n0) * (rows - n1), t1 * rows / n1)


class Scheduler:
    """Chooses batches and remembers who was served."""

    def __init__(self, costs: CostTable, max_batch: int, max_wait_forwards: int = 8) -> None:
        """`max_batch`: samples in one forward; a row that is wider runs alone."""
        self.costs, self.sizes = costs, BatchSizes(max_batch)
        self._max_wait = max_wait_forwards
        self._served: dict[str, float] = {}
        """Seconds of service by weight: of tenants with ready rows, and of those above `_level`."""
        self._level = 0.0
        """Least service among the tenants whose rows had to wait at the last choice."""
        self._waited: dict[Hashable, int] = {}
        """Forwards that a ready group has waited."""

    def choose(self, ready: RowQueues, now: float) -> list[Row]:
        """The rows of the next forward, all of one group; empty iff `ready` is. Charges their tenants."""
        if not ready:
            self._waited.clear()
            return []
        self._welcome(ready)
        batch = self._best(ready, now)
        self._charge(batch, ready)
        self._age(ready, batch[0].group)
        return batch

    def _welcome(self, ready: RowQueues) -> None:
        """Tenants that were away, or had nothing left to wish for, go on from the level of the others."""
        owing = {tenant: served for tenant, served in self._served.items() if served > self._level}
        self._served = {**dict.fromkeys(ready.tenants, self._level), **owing}

    def _best(self, ready: RowQueues, now: float) -> list[Row]:
        head = self._head(ready, now)
        if head.frame.failures:  # It failed before: whoever shared its batch is innocent.
            return [head]
        return self._grow(ready.groups[head.group], head.group, now)

    def _head(self, ready: RowQueues, now: float) -> Row:
        overdue = self._overdue(ready.groups)
        if overdue:
            return self._first([ready.groups[group] for group in overdue])
        head = self._first(ready.groups.values())
        feeders = ready.feeders.get(head.group)
        if feeders is not None and self._is_worth_feeding(head, feeders, ready.groups[head.group], now):
            return self._first([feeders])
        return head

    def _first(self, queues: Iterable[RowQueue]) -> Row:
        _, entry = min(queue.first(self._served) for queue in queues)
        return entry[-1]

    def _is_worth_feeding(self, head: Row, feeders: RowQueue, here: RowQueue, now: float) -> bool:
        """Whether to encode before denoising: what was just encoded joins the forward and spares its own.

        Not if the encoding takes longer than it spares (without a gain from batching), nor if it makes
        `head` late. `here`: the rows that it shares a group with.
        """
        if head.operator.kind is not OperatorKind.DENOISE or head.frame.failures:
            return False
        cost, most = self.costs.seconds, self.sizes.most(head.group, now)
        fed = list(islice(feeders, most))
        joining = sum(row.later[0].width for row in fed)
        if here.width + joining > most:
            return False
        encode_s = cost(fed[0].group, len(fed), drawing_s=self.costs.drawing_s(fed))
        together_s = cost(head.group, here.width + joining)
        apart_s = cost(head.group, here.width) + cost(head.group, joining)
        is_late = now + cost(head.group, head.width) > head.due_s
        return encode_s < apart_s - together_s and (is_late or now + encode_s + together_s <= head.due_s)

    def _overdue(self, groups: Collection[Hashable]) -> Sequence[Hashable]:
        """The groups that have waited longest, if waiting more would break the bound for them or others."""
        longest_first = sorted((self._waited.get(group, 0) for group in groups), reverse=True)
        is_due = any(waited + i >= self._max_wait for i, waited in enumerate(longest_first))
        if not is_due or len(groups) == 1:
            return ()
        return [group for group in groups if self._waited.get(group, 0) == longest_first[0]]

    def _grow(self, rows: RowQueue, group: Hashable, now: float) -> list[Row]:
        samples = rows.width - rows.failed_width
        room = min(self.sizes.most(group, now), samples)
        candidates = rows.in_turn(self._served, self.costs.service(group, room) / room)
        head = next(candidates)
        batch, width, writes, controls = [head], head.width, head.writes, head.controls
        drawing_s = self.costs.drawing_s(batch)
        if now + self.costs.seconds(group, width, writes, controls, drawing_s) > head.due_s:
            return [head, *_fitting(candidates, self._best_throughput(group, room) - width)]
        deadlines = {head.later: head.frame.deadline_s}
        wider: dict[Hashable, int] = {}
        _widen(wider, head)
        for row in _fitting(candidates, room - width):
            writes, controls = writes + row.writes, controls + row.controls
            drawing_s += self.costs.drawing_s([row])
            done_s = now + self.costs.seconds(group, width + row.width, writes, controls, drawing_s)
            if done_s > self._earliest_due(deadlines, len(batch), wider):
                break
            batch.append(row)
            width += row.width
            _widen(wider, row)
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
            deadline_s
            - sum(
                self.costs.seconds(group, rows + wider.get(group, 0), controls=controls)
                for group, _, controls in later
            )
            if deadline_s < inf
            else inf
            for later, deadline_s in deadlines.items()
        )

    def _best_throughput(self, group: Hashable, room: int) -> int:
        """The number of samples, up to `room`, that a second of this group does most of."""

        def rate(rows: int) -> float:
            cost = self.costs.seconds(group, rows)
            return rows / cost if cost else float(rows)

        return max(range(1, room + 1), key=rate)

    def _charge(self, batch: Sequence[Row], ready: RowQueues) -> None:
        writes, width = sum(row.writes for row in batch), sum(row.width for row in batch)
        share_s = self.costs.service(batch[0].group, width, writes) / width
        for row in batch:
            row_s = share_s * row.width + row.controls * self.costs.control_s + self.costs.drawing_s([row])
            self._served[row.frame.spec.tenant] += row_s / row.frame.spec.weight
        # Where nobody waits nobody was served at another's cost: all are level again.
        waiting = map(self._served.__getitem__, ready.waiting(batch))
        self._level = min(waiting, default=max(self._served.values()))

    def _age(self, ready: RowQueues, chosen: Hashable) -> None:
        self._waited = {group: self._waited.get(group, 0) + 1 for group in ready.groups if group != chosen}


def _fitting(rows: Iterable[Row], room: int) -> Iterator[Row]:
    """Rows in their order, as far as they fit: a narrow one does not overtake a wide one."""
    for row in rows:
        room -= row.width
        if room < 0:
            return
        yield row


def _widen(wider: dict[Hashable, int], row: Row) -> None:
    """Count the samples beyond one that its frame's widest later row of a group will be."""
    for group, extra in {group: width - 1 for group, width, _ in row.later if width > 1}.items():
        wider[group] = wider.get(group, 0) + extra
