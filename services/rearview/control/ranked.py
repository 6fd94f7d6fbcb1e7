"""`placement.place` over replicas that are kept in its order, for who places again and again.

`place` looks at every replica each time: 11 ms with a thousand of them. From one call to the next, few have
changed. So they stay sorted by what does not depend on the session, only those are sorted anew that have
changed, and the first that the session may take is near the front. A test holds both to the same answers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rearview.contract.cost import fits
from rearview.contract.lease import NO_USAGE, Usage
from rearview.control.placement import ANY, LOAD_STEP, RETRY_AFTER_S, Asked, Full, Replica, place

__all__ = ["Ranked"]

Rank: TypeAlias = tuple[int, float, float, str]
"""Level of its load, share of its slots in use, share that is leased, id: the order of placement for any
session.
"""


@dataclass(frozen=True, slots=True)
class _Known:
    replica: Replica
    sessions: int
    pixels_per_s: float
    """These two are what leases take of it."""
    rank: Rank
    load: float


class Ranked:
    """The replicas of all spans. For one thread."""

    def __init__(self, spans: Sequence[str]) -> None:
        """`spans`: in order of the lane."""
        self._spans = tuple(spans)
        self._known: dict[str, _Known] = {}
        self._order: dict[str, list[Rank]] = {span: [] for span in spans}
        self._untold: set[str] = set()
        """Replicas that do not tell their costs."""

    def place(
        self, replicas: Mapping[str, Replica], usage: Mapping[str, Usage], asked: Asked = ANY
    ) -> tuple[str, ...]:
        """See `placement.place`. `replicas`: by id."""
        self._see(replicas, usage)
        if self._untold:
            return place(self._spans, replicas.values(), usage, asked)
        lane: list[str] = []
        node: str | None = None
        for span in self._spans:
            chosen = self._first(span, asked, node)
            lane.append(chosen.replica_id)
            node = chosen.node
        return tuple(lane)

    def _see(self, replicas: Mapping[str, Replica], usage: Mapping[str, Usage]) -> None:
        known = self._known
        for replica_id, replica in replicas.items():
            used, before = usage.get(replica_id, NO_USAGE), known.get(replica_id)
            if (
                before is None
                or before.replica is not replica
                or before.sessions != used.sessions
                or before.pixels_per_s != used.load.pixels_per_s
            ):
                self._put(replica, used)
        if len(known) + len(self._untold) != len(replicas):
            for replica_id in (known.keys() | self._untold) - replicas.keys():
                self._drop(replica_id)

    def _put(self, replica: Replica, used: Usage) -> None:
        self._drop(replica.replica_id)
        load = replica.load(used)
        if load is None:
            self._untold.add(replica.replica_id)
            return
        slots = max(1, replica.slots)
        shares = replica.used(used.sessions) / slots, used.sessions / slots
        rank = (round(load / LOAD_STEP), *shares, replica.replica_id)
        known = _Known(replica, used.sessions, used.load.pixels_per_s, rank, load)
        self._known[replica.replica_id] = known
        if replica.span in self._order:
            insort(self._order[replica.span], rank)

    def _drop(self, replica_id: str) -> None:
        self._untold.discard(replica_id)
        known = self._known.pop(replica_id, None)
        if known is not None and (order := self._order.get(known.replica.span)) is not None:
            del order[bisect_left(order, known.rank)]

    def _first(self, span: str, asked: Asked, node: str | None) -> Replica:
        """See `placement.place`. Raises Full."""
        best: tuple[tuple[bool, bool, bool, bool], tuple[int, float, float], bool] | None = None
        chosen: Replica | None = None
        for known, is_late in self._fitting(span, asked):
            replica, rank = known.replica, known.rank[:3]
            if best is not None and not any(best[0]) and (rank != best[1] or not best[2]):
                break  # What follows comes later in every way.
            name = replica.replica_id
            told = (name in asked.taken, is_late, name in asked.leaving, name in asked.spares)
            key = told, rank, node is not None and replica.node != node
            if best is None or key < best:  # Of equals the smallest id came first.
                best, chosen = key, replica
        if chosen is None:
            raise self._full(span, asked)
        return chosen

    def _fitting(self, span: str, asked: Asked) -> Iterator[tuple[_Known, bool]]:
        """Those that may take the session, and whether it is too much for their time."""
        kept_off = frozenset() if asked.goes_on else asked.spares | asked.taken
        for rank in self._order[span]:
            known = self._known[rank[3]]
            replica = known.replica
            if replica.used(known.sessions) >= replica.slots or replica.replica_id in kept_off:
                continue
            assert replica.cost is not None
            has_time = asked.max_load is None or fits(known.load + asked.share(replica.cost), asked.max_load)
            if has_time or asked.goes_on:
                yield known, not has_time

    def _full(self, span: str, asked: Asked) -> Full:
        kept_off = frozenset() if asked.goes_on else asked.spares | asked.taken
        of_span = [self._known[rank[3]] for rank in self._order[span] if rank[3] not in kept_off]
        by_load = any(each.replica.used(each.sessions) < each.replica.slots for each in of_span)
        is_certain = bool(of_span) and all(each.sessions >= each.replica.slots for each in of_span)
        return Full(span, RETRY_AFTER_S, by_load=by_load, is_certain=is_certain)
