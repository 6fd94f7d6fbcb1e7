"""The replicas of one span in virtual time: who has which sessions, and what that makes of them.

Sessions go where the service's own placement puts them. How good they are there is not computed here: the
time that replicas have had so many sessions is summed, and the curve says what it was worth.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from rearview.contract.cost import FrameCost
from rearview.contract.lease import Load, Usage
from rearview.control.placement import Asked, Full, Replica, place
from rearview.control.rebalance import Movable, Shift, rebalance
from rearview.control.scaling import Phase, ReplicaNow
from rearview.planning.ranking import Ranking

__all__ = ["GPUS_PER_NODE", "SPAN", "Fleet", "Placed", "Unit"]

SPAN = "fused"
GPUS_PER_NODE = 8


@dataclass(slots=True)
class Placed:
    """A session that was admitted."""

    unit: Unit
    since_s: float
    """When it came there."""
    moved_s: float = float("-inf")


@dataclass(slots=True, eq=False)
class Unit:
    """A replica on a GPU of its own."""

    replica: Replica
    gpu: int
    ordered_s: float
    phase: Phase
    sessions: set[str] = field(default_factory=set)
    changed_s: float = 0.0
    """When its number of sessions changed last."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A session was on a replica."""

    session_id: str
    replica_id: str
    start_s: float
    end_s: float


class Fleet:
    """Of replicas that cost the same and sessions that ask for the same."""

    def __init__(
        self, cost: FrameCost, asked: Asked, slots: int, gpus: int, *, keeps_stays: bool = False
    ) -> None:
        """`gpus`: there are no more. `keeps_stays`: remember who was where."""
        self._cost, self._asked, self._slots = cost, asked, slots
        self._share = asked.share(cost)
        self._free_gpus = list(range(gpus))
        self._ranking = Ranking(SPAN)
        self._ordered = 0
        self.units: dict[str, Unit] = {}
        self.placed: dict[str, Placed] = {}
        self.stays: list[Stay] | None = [] if keeps_stays else None
        self.seconds_with: defaultdict[int, float] = defaultdict(float)
        """Of replicas, by their number of sessions."""
        self.with_sessions: Counter[int] = Counter()
        """Replicas now, by their number of sessions."""
        self.gpu_s = 0.0
        """Of replicas that are gone, from the order on."""
        self._usages: dict[int, Usage] = {}
        self._phases: dict[Phase, set[Unit]] = {phase: set() for phase in Phase}
        self._seen: dict[tuple[int, Phase], ReplicaNow] = {}

    def order(self, now: float, *, is_ready: bool = False) -> Unit | None:
        """A replica more; None: there is no GPU for it."""
        if not self._free_gpus:
            return None
        gpu = heapq.heappop(self._free_gpus)
        # Names rise, so that among equals placement takes the oldest.
        replica_id, self._ordered = f"r{self._ordered:06d}", self._ordered + 1
        node = f"n{gpu // GPUS_PER_NODE}"
        replica = Replica(replica_id, SPAN, "", node, self._slots, self._slots, self._cost)
        unit = self.units[replica_id] = Unit(replica, gpu, now, Phase.STARTING, changed_s=now)
        self._phases[Phase.STARTING].add(unit)
        self.with_sessions[0] += 1
        if is_ready:
            self.serve(unit, now)
        return unit

    def serve(self, unit: Unit, now: float) -> None:
        """The replica takes sessions (again)."""
        self._turn(unit, Phase.SERVING)
        self._rank(unit)

    def leave(self, unit: Unit, now: float) -> None:
        """The replica takes no session any more, and goes when it has none."""
        self._turn(unit, Phase.LEAVING)
        self._ranking.drop(unit.replica.replica_id)
        if not unit.sessions:
            self.remove(unit, now)

    def remove(self, unit: Unit, now: float) -> list[str]:
        """The replica is gone; returns the sessions that it had, which have no place now."""
        lost = sorted(unit.sessions)
        for session_id in lost:
            self._take(session_id, now)
        self._ranking.drop(unit.replica.replica_id)
        self._count(unit, now, 0)
        self.gpu_s += now - unit.ordered_s
        self.with_sessions[0] -= 1
        self._phases[unit.phase].discard(unit)
        del self.units[unit.replica.replica_id]
        heapq.heappush(self._free_gpus, unit.gpu)
        return lost

    def open(self, session_id: str, now: float) -> None:
        """Admit a new session. Raises Full."""
        self._put(session_id, self.units[self._ranking.place(self._asked)], now)

    def recover(self, session_id: str, now: float) -> None:
        """Place a session that has lost its replica, wherever a slot is free. Raises Full."""
        serving = [unit.replica for unit in self.units.values() if unit.phase is Phase.SERVING]
        asked = replace(self._asked, goes_on=True)
        (chosen,) = place([SPAN], serving, self._usage(serving), asked)
        self._put(session_id, self.units[chosen], now)

    def close(self, session_id: str, now: float) -> None:
        """The session ends; one that is nowhere is ignored."""
        if session_id in self.placed:
            unit = self._take(session_id, now)
            if unit.phase is Phase.LEAVING and not unit.sessions:
                self.remove(unit, now)

    def move_out(self, unit: Unit, now: float) -> bool:
        """Move one session of a replica that leaves; whether there was room for it."""
        session_id = min(unit.sessions)
        try:
            chosen = self._ranking.place(self._asked)
        except Full:
            return False
        self._move(session_id, chosen, now)
        if not unit.sessions:
            self.remove(unit, now)
        return True

    def balance(self, now: float) -> bool:
        """Move the session that is worth most, if one is; whether it was moved. With sessions that are alike
        it is one of the fullest replica, and goes to the emptiest: only those two are looked at.
        """
        found = self._ranking.extremes()
        if found is None or found[0] == found[1]:
            return False
        units = [self.units[replica_id] for replica_id in found]
        sessions = [self._movable(session_id) for session_id in units[1].sessions]
        replicas = [unit.replica for unit in units]
        shift: Shift | None = rebalance(replicas, self._usage(replicas), sessions, now)
        if shift is None:
            return False
        self._move(shift.session_id, shift.lane[0], now)
        return True

    def now(self) -> tuple[ReplicaNow, ...]:
        """What scaling is told of each replica."""
        return tuple(self._now(len(unit.sessions), unit.phase) for unit in self.units.values())

    def count(self, *phases: Phase) -> int:
        """How many replicas are in these phases."""
        return sum(len(self._phases[phase]) for phase in phases)

    def newest(self, phase: Phase) -> list[Unit]:
        """The replicas in a phase, the newest first."""
        return sorted(self._phases[phase], key=lambda unit: unit.replica.replica_id, reverse=True)

    def settle(self, now: float) -> None:
        """Sum up until now: nothing follows."""
        for session_id in list(self.placed):
            self._take(session_id, now)
        for unit in self.units.values():
            self._count(unit, now, 0)
            self.gpu_s += now - unit.ordered_s

    def _now(self, sessions: int, phase: Phase) -> ReplicaNow:
        found = self._seen.get((sessions, phase))
        if found is None:
            found = ReplicaNow(sessions * self._share, sessions, self._slots, phase)
            self._seen[sessions, phase] = found
        return found

    def _turn(self, unit: Unit, phase: Phase) -> None:
        self._phases[unit.phase].discard(unit)
        self._phases[phase].add(unit)
        unit.phase = phase

    def _movable(self, session_id: str) -> Movable:
        placed = self.placed[session_id]
        return Movable(session_id, (placed.unit.replica.replica_id,), self._asked, placed.moved_s)

    def _usage(self, replicas: Iterable[Replica]) -> Mapping[str, Usage]:
        return {
            each.replica_id: self._usage_of(len(self.units[each.replica_id].sessions)) for each in replicas
        }

    def _usage_of(self, sessions: int) -> Usage:
        if sessions not in self._usages:
            load = self._asked.load
            of_all = Load(load.frames_per_s * sessions, load.pixels_per_s * sessions)
            self._usages[sessions] = Usage(sessions, of_all)
        return self._usages[sessions]

    def _move(self, session_id: str, replica_id: str, now: float) -> None:
        self._take(session_id, now)
        self._put(session_id, self.units[replica_id], now)
        self.placed[session_id].moved_s = now

    def _put(self, session_id: str, unit: Unit, now: float) -> None:
        self._count(unit, now, 1)
        unit.sessions.add(session_id)
        self.placed[session_id] = Placed(unit, now)
        self._rank(unit)

    def _take(self, session_id: str, now: float) -> Unit:
        placed = self.placed.pop(session_id)
        self._count(placed.unit, now, -1)
        placed.unit.sessions.discard(session_id)
        self._rank(placed.unit)
        if self.stays is not None:
            self.stays.append(Stay(session_id, placed.unit.replica.replica_id, placed.since_s, now))
        return placed.unit

    def _count(self, unit: Unit, now: float, more: int) -> None:
        before = len(unit.sessions)
        self.seconds_with[before] += now - unit.changed_s
        self.with_sessions[before] -= 1
        self.with_sessions[before + more] += 1
        unit.changed_s = now

    def _rank(self, unit: Unit) -> None:
        if unit.phase is Phase.SERVING:
            self._ranking.put(unit.replica, self._usage_of(len(unit.sessions)))
