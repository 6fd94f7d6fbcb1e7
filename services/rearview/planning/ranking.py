"""`control.placement.place` for a new session of one span, over replicas that are kept in its order.

`place` looks at every replica each time: 2 ms and more with a thousand of them, and a day of ten thousand
streams asks half a million times. Here only what changes is sorted anew; a test holds both to the same
answers. Replicas of which placement would say the same in every way are in one bucket.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from rearview.contract.cost import FrameCost, fits
from rearview.contract.lease import Usage
from rearview.control.placement import LOAD_STEP, RETRY_AFTER_S, Asked, Full, Replica

__all__ = ["Ranking"]

Rank: TypeAlias = tuple[int, float, float, float, int]
"""Level, share of slots used, share of slots leased: the order of placement. Then load, and number of the
cost table: with them all of a bucket fit, or none.
"""


@dataclass(slots=True)
class _Bucket:
    heap: list[str] = field(default_factory=list)
    queued: set[str] = field(default_factory=set)
    """In the heap, some of them no more in the bucket."""
    members: int = 0


class Ranking:
    """The replicas of one span that take new sessions. All tell their costs, and none is a spare."""

    def __init__(self, span: str) -> None:
        self._span = span
        self._buckets: dict[Rank, _Bucket] = {}
        self._order: list[Rank] = []
        self._rank: dict[str, Rank] = {}
        self._costs: list[FrameCost] = []
        """A cost table's number is its place. There are few."""
        self._known: dict[tuple[float, ...], Rank] = {}
        """By what it depends on."""
        self._asked: Asked | None = None
        self._shares: dict[int, float] = {}
        """What a session that asks for `_asked` takes, by the number of the cost table."""
        self._is_full_for: Asked | None = None
        """For whom there was no room, and nothing has changed since."""

    def __len__(self) -> int:
        return len(self._rank)

    def put(self, replica: Replica, usage: Usage) -> None:
        """The replica is there, or what leases take of it has changed."""
        assert replica.cost is not None
        self.drop(replica.replica_id)
        self._is_full_for = None
        rank = self._of(replica, replica.cost, usage)
        bucket = self._buckets.get(rank)
        if bucket is None:
            bucket = self._buckets[rank] = _Bucket()
            insort(self._order, rank)
        self._rank[replica.replica_id] = rank
        bucket.members += 1
        if replica.replica_id not in bucket.queued:
            bucket.queued.add(replica.replica_id)
            heapq.heappush(bucket.heap, replica.replica_id)

    def drop(self, replica_id: str) -> None:
        """The replica takes no new session; one that is not there is ignored."""
        rank = self._rank.pop(replica_id, None)
        if rank is None:
            return
        self._is_full_for = None
        bucket = self._buckets[rank]
        bucket.members -= 1
        if not bucket.members:
            del self._buckets[rank]
            del self._order[bisect_left(self._order, rank)]

    def place(self, asked: Asked) -> str:
        """Id of the replica for a new session. Raises Full as `place` does."""
        if self._is_full_for is not asked:
            best, found = None, ""
            for rank in self._order:
                if best is not None and rank[:3] != best:
                    break
                if self._takes(rank, asked) and (not found or self._first(rank) < found):
                    best, found = rank[:3], self._first(rank)
            if found:
                return found
            self._is_full_for = asked
        raise Full(
            self._span,
            RETRY_AFTER_S,
            by_load=any(rank[1] < 1.0 for rank in self._order),
            is_certain=bool(self._order) and all(rank[2] >= 1.0 for rank in self._order),
        )

    def extremes(self) -> tuple[str, str] | None:
        """The emptiest and the fullest; None where there are none."""
        return (self._first(self._order[0]), self._first(self._order[-1])) if self._order else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rank)

    def _of(self, replica: Replica, cost: FrameCost, usage: Usage) -> Rank:
        number = self._number(cost)
        pixels_per_s = usage.load.pixels_per_s
        told = (replica.slots, replica.free_slots, replica.share, replica.pixels_per_s)
        key = (number, usage.sessions, pixels_per_s, *told)
        rank = self._known.get(key)
        if rank is None:
            load = replica.load(usage) or 0.0
            used, leased = replica.used(usage.sessions) / replica.slots, usage.sessions / replica.slots
            rank = self._known[key] = (round(load / LOAD_STEP), used, leased, load, number)
        return rank

    def _number(self, cost: FrameCost) -> int:
        for number, known in enumerate(self._costs):
            if known is cost:
                return number
        self._costs.append(cost)
        return len(self._costs) - 1

    def _takes(self, rank: Rank, asked: Asked) -> bool:
        _, used, _, load, number = rank
        if used >= 1.0:
            return False
        if self._asked is not asked:
            self._asked, self._shares = asked, {}
        if number not in self._shares:
            self._shares[number] = asked.share(self._costs[number])
        return fits(load + self._shares[number], asked.max_load)

    def _first(self, rank: Rank) -> str:
        bucket = self._buckets[rank]
        while self._rank.get(bucket.heap[0]) != rank:
            bucket.queued.discard(heapq.heappop(bucket.heap))
        return bucket.heap[0]
