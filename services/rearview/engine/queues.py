"""Rows that wait for a forward, in the order in which the scheduler asks for them.

Inside a tenant the most urgent row is first; which tenant's turn it is the scheduler knows. A row that comes
or goes costs a binary search, and the first rows are found without a look at the others.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

from rearview.contract.chain import OperatorKind
from rearview.engine.rows import Row

__all__ = ["RowQueue", "RowQueues"]

Entry = tuple[bool, float, int, float, str, int, int, Row]
"""What failed first; then what is due first; then the frame that is furthest, so that pictures come out one
by one; then who has waited longest, so that no session is preferred. No two are equal."""


def _entry(row: Row, number: int) -> Entry:
    """As the row's frame is now. `number`: of the row among all."""
    frame = row.frame
    return (
        not frame.failures,
        row.due_s,
        -frame.position,
        frame.ready_s,
        frame.spec.session_id,
        frame.ordinal,
        number,
        row,
    )


class RowQueue:
    """Rows of which the scheduler may ask which is first: those of a group, or that feed one."""

    def __init__(self) -> None:
        self.width, self.failed_width = 0, 0
        """Samples of all rows, and of those that failed before."""
        self._tenants: dict[str, list[Entry]] = {}

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def __iter__(self) -> Iterator[Row]:
        return (entry[-1] for entries in self._tenants.values() for entry in entries)

    def add(self, entry: Entry) -> None:
        """Put in a row that is not here."""
        row = entry[-1]
        entries = self._tenants.get(tenant := row.frame.spec.tenant)
        if entries is None:
            self._tenants[tenant] = [entry]
        else:
            insort(entries, entry)
        self._count(entry, row.width)

    def remove(self, entry: Entry) -> None:
        """Take out a row that is here."""
        row = entry[-1]
        entries = self._tenants[tenant := row.frame.spec.tenant]
        del entries[bisect_left(entries, entry)]
        if not entries:
            del self._tenants[tenant]
        self._count(entry, -row.width)

    def first(self, served: Mapping[str, float]) -> tuple[float, Entry]:
        """The most urgent row of the tenants that were served least, behind their service."""
        least = min(map(served.__getitem__, self._tenants))
        return least, min(entries[0] for name, entries in self._tenants.items() if served[name] == least)

    def in_turn(self, served: Mapping[str, float], share_s: float) -> Iterator[Row]:
        """Rows that did not fail as tenants would get them one by one, each charged `share_s` a sample."""
        turns = []
        for tenant, entries in self._tenants.items():
            at = next((at for at, entry in enumerate(entries) if entry[0]), None)
            if at is not None:
                turns.append((served[tenant], entries[at], at, entries))
        heapq.heapify(turns)
        while turns:
            level, entry, at, entries = turns[0]
            row = entry[-1]
            if at + 1 < len(entries):
                level += share_s * row.width / row.frame.spec.weight
                heapq.heapreplace(turns, (level, entries[at + 1], at + 1, entries))
            else:
                heapq.heappop(turns)
            yield row

    def _count(self, entry: Entry, samples: int) -> None:
        self.width += samples
        if not entry[0]:
            self.failed_width += samples


class RowQueues:
    """All rows that wait."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.groups: dict[Hashable, RowQueue] = {}
        self.feeders: dict[Hashable, RowQueue] = {}
        """By the group that they will be in next: the rows of encode."""
        self.tenants: dict[str, int] = {}
        """How many rows each has that has any."""
        self._entries: dict[Row, Entry] = {}
        self._ready_s: list[float] = []
        """Since when each has waited, the longest first."""
        self._added = 0
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._entries)

    @property
    def oldest_s(self) -> float | None:
        """Since when the row waits that has waited longest."""
        return self._ready_s[0] if self._ready_s else None

    def add(self, row: Row) -> None:
        """Put in a row that is not here."""
        assert row not in self._entries, f"row {row.ordinal} of {row.operator.name} waits twice"
        self._added += 1
        entry = self._entries[row] = _entry(row, self._added)
        for queues, key in self._places(row):
            queue = queues.get(key)
            if queue is None:
                queue = queues[key] = RowQueue()
            queue.add(entry)
        tenant = row.frame.spec.tenant
        self.tenants[tenant] = self.tenants.get(tenant, 0) + 1
        insort(self._ready_s, entry[3])

    def remove(self, row: Row) -> None:
        """Take out a row that is here."""
        entry = self._entries.pop(row)
        for queues, key in self._places(row):
            queue = queues[key]
            queue.remove(entry)
            if not queue:
                del queues[key]
        tenant = row.frame.spec.tenant
        self.tenants[tenant] -= 1
        if not self.tenants[tenant]:
            del self.tenants[tenant]
        del self._ready_s[bisect_left(self._ready_s, entry[3])]

    def waiting(self, besides: Collection[Row]) -> Iterator[str]:
        """Tenants that have a row besides these."""
        taken: dict[str, int] = {}
        for row in besides:
            tenant = row.frame.spec.tenant
            taken[tenant] = taken.get(tenant, 0) + 1
        return (tenant for tenant, count in self.tenants.items() if count > taken.get(tenant, 0))

    def _places(self, row: Row) -> list[tuple[dict[Hashable, RowQueue], Hashable]]:
        places = [(self.groups, row.group)]
        if row.later and row.operator.kind is OperatorKind.ENCODE:
            places.append((self.feeders, row.later[0].group))
        return places
