"""Which session to move from a full replica to an emptier one, if that is worth a move. Pure.

One move at a time, each from what is known after the one before. It is worth it only if the replica that
takes the session is then still clearly emptier than the one that gave it was: so the fullest replicas get
emptier with every move, no session goes back and forth, and after finitely many there is none left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from rearview.contract.lease import NO_USAGE, Usage
from rearview.control.placement import Asked, Replica

__all__ = ["REST_S", "Movable", "Shift", "rebalance"]

FULL_FROM = 0.5
"""A replica that is less than half full is left alone, whatever the others are."""
WORTH = 0.1
"""By so much of a replica the one that takes a session must stay below what the other was."""
REST_S = 60.0
"""Between two moves of one session."""


@dataclass(frozen=True, slots=True)
class Movable:
    """A session that may be moved by whoever asks."""

    session_id: str
    lane: tuple[str, ...]
    """A replica id per span."""
    asked: Asked
    moved_s: float = -inf
    """When it came to this lane from another one."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A session is to move."""

    session_id: str
    lane: tuple[str, ...]
    """Where to: its own lane, but for one replica."""


def rebalance(
    replicas: Iterable[Replica], usage: Mapping[str, Usage], sessions: Iterable[Movable], now: float
) -> Shift | None:
    """The move that is worth most; None if none is worth it.

    `replicas`: those that may take sessions. `usage`: what leases take of each. `sessions`: those that may
    move; of others only their usage is known.
    """
    spans: dict[str, list[Replica]] = {}
    for replica in replicas:
        spans.setdefault(replica.span, []).append(replica)
    rested = [session for session in sessions if now - session.moved_s >= REST_S]
    shifts = [each for of_span in spans.values() for each in _shifts(of_span, usage, rested)]
    return max(shifts, key=lambda each: (each[0], each[1].session_id, each[1].lane), default=(0.0, None))[1]


def _shifts(
    replicas: Sequence[Replica], usage: Mapping[str, Usage], sessions: Sequence[Movable]
) -> Iterator[tuple[float, Shift]]:
    """Of one span, with what each is worth."""
    by_load = all(replica.cost is not None for replica in replicas)
    known = {replica.replica_id: replica for replica in replicas}
    full = {each: _full(replica, usage, by_load=by_load) for each, replica in known.items()}
    for session in sessions:
        for source in known.keys() & set(session.lane):
            if full[source] < FULL_FROM:
                continue
            for target, replica in known.items():
                if target in session.lane or not _has_slot(replica, usage):
                    continue
                worth = full[source] - full[target] - _part(replica, session.asked, by_load=by_load)
                if worth >= WORTH:
                    lane = tuple(target if each == source else each for each in session.lane)
                    yield worth, Shift(session.session_id, lane)


def _full(replica: Replica, usage: Mapping[str, Usage], *, by_load: bool) -> float:
    used = usage.get(replica.replica_id, NO_USAGE)
    load = replica.load(used) if by_load else None
    return replica.used(used.sessions) / replica.slots if load is None else load


def _part(replica: Replica, asked: Asked, *, by_load: bool) -> float:
    """What the session would take of it."""
    if not by_load or replica.cost is None:
        return 1 / replica.slots
    return asked.share(replica.cost)


def _has_slot(replica: Replica, usage: Mapping[str, Usage]) -> bool:
    return replica.used(usage.get(replica.replica_id, NO_USAGE).sessions) < replica.slots
