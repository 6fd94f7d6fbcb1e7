"""A day of a fleet, session by session, in virtual time.

Admission, placement, rebalancing and scaling are the service's own. Who is refused asks again, as clients do,
until its patience ends. A session on a replica that is lost is without a picture until it is noticed, and
then until there is a place for it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import IntEnum
from random import Random

from rearview.control.placement import RETRY_AFTER_S, Full
from rearview.control.scaling import Phase, SpanNow
from rearview.planning.curves import Curve
from rearview.planning.fleet import GPUS_PER_NODE, Fleet, Unit
from rearview.planning.policies import Policy
from rearview.planning.traces import Trace

__all__ = ["Conditions", "Result", "Sample", "simulate"]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What does not depend on the policy."""

    time_to_capacity_s: float = 120.0
    """From the order of a replica until it takes sessions."""
    decide_every_s: float = 15.0
    balance_every_s: float = 5.0
    moves_per_s: float = 4.0
    """Of sessions that leave replicas that are to go."""
    patience_s: float = 60.0
    """So long somebody who was refused asks again."""
    move_stall_s: float = 0.2
    """Without a picture in a planned move: the bound that is held, docs/reliability.md."""
    notice_s: float = 2.0
    """Without a picture after a loss, before anything is done about it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment."""

    time_s: float
    sessions: int
    replicas: int
    """Those that start and leave included."""


@dataclass
class Result:
    """What a policy made of a trace."""

    asked: int = 0
    refused: int = 0
    """Who was never admitted."""
    waited_s: float = 0.0
    """By those who were admitted, before."""
    session_s: float = 0.0
    """With a place."""
    stalled_s: float = 0.0
    """In moves and after losses, beyond what the curve says."""
    attainment: float = 1.0
    """Share of the frames of admitted sessions with a picture within the SLO."""
    play_ratio: float = 1.0
    """Share of the time of admitted sessions in which the next picture was there when it was due."""
    gpu_hours: float = 0.0
    peak_replicas: int = 0
    moves: int = 0
    recovered: int = 0
    seconds_with: dict[int, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    @property
    def refused_share(self) -> float:
        """Of those who asked."""
        return self.refused / self.asked if self.asked else 0.0


class _Kind(IntEnum):
    """In which order things happen that happen at one moment."""

    END = 0
    READY = 1
    LOSS = 2
    BACK = 3
    ASK = 4
    DECIDE = 5
    BALANCE = 6
    SAMPLE = 7


SAMPLES = 288


def simulate(
    trace: Trace,
    policy: Policy,
    fleet: Fleet,
    curve: Curve,
    conditions: Conditions,
    at_start: int,
    seed: int = 1,
) -> Result:
    """Run a trace to its end. `at_start`: replicas that serve when it begins."""
    return _Day(trace, policy, fleet, curve, conditions, seed).run(at_start)


class _Day:
    def __init__(
        self, trace: Trace, policy: Policy, fleet: Fleet, curve: Curve, conditions: Conditions, seed: int
    ) -> None:
        self._trace, self._policy, self._fleet, self._curve = trace, policy, fleet, curve
        self._conditions, self._random = conditions, Random(f"{trace.name}/{seed}/asks again")
        self._result = Result(asked=len(trace.visits))
        self._due: list[tuple[float, int, int, str]] = []
        """Time, kind, a number, and a name."""
        self._arrivals = self._refusals = 0
        """Since the last decision."""
        self._away_s: dict[str, float] = {}
        """Sessions without a replica, since when."""
        self._ends_s: dict[str, float] = {}

    def run(self, at_start: int) -> Result:
        for _ in range(at_start):
            self._fleet.order(0.0, is_ready=True)
        for kind in (_Kind.DECIDE, _Kind.BALANCE, _Kind.SAMPLE):
            self._push(0.0, kind)
        for at_s, nodes in self._trace.losses:
            self._push(at_s, _Kind.LOSS, nodes)
        visits = iter(enumerate(self._trace.visits))
        upcoming = next(visits, None)
        while True:
            if upcoming and (not self._due or (upcoming[1].at_s, _Kind.ASK) <= self._due[0][:2]):
                number, visit = upcoming
                self._arrivals += 1
                self._ask(number, visit.at_s)
                upcoming = next(visits, None)
                continue
            if not self._due or self._due[0][0] > self._trace.duration_s:
                return self._settled()
            self._happen(*heapq.heappop(self._due))

    def _push(self, at_s: float, kind: _Kind, number: int = 0, name: str = "") -> None:
        heapq.heappush(self._due, (at_s, kind, number, name))

    def _happen(self, now: float, kind: int, number: int, name: str) -> None:
        match kind:
            case _Kind.END:
                self._end(name, now)
            case _Kind.READY:
                unit = self._fleet.units.get(name)
                if unit is not None and unit.phase is Phase.STARTING:
                    self._fleet.serve(unit, now)
            case _Kind.LOSS:
                self._lose(number, now)
            case _Kind.BACK:
                self._recover(name, now)
            case _Kind.ASK:
                self._ask(number, now)
            case _Kind.DECIDE:
                self._decide(now)
                self._push(now + self._conditions.decide_every_s, _Kind.DECIDE)
            case _Kind.BALANCE:
                self._balance(now)
                self._push(now + self._conditions.balance_every_s, _Kind.BALANCE)
            case _Kind.SAMPLE:
                units = len(self._fleet.units)
                self._result.samples.append(Sample(now, len(self._fleet.placed), units))
                self._push(now + self._trace.duration_s / SAMPLES, _Kind.SAMPLE)

    def _ask(self, number: int, now: float) -> None:
        visit, name = self._trace.visits[number], f"s{number:07d}"
        try:
            self._fleet.open(name, now)
        except Full:
            self._refusals += 1
            again_s = now + RETRY_AFTER_S * self._random.uniform(1.0, 1.5)
            if again_s - visit.at_s <= self._conditions.patience_s:
                self._push(again_s, _Kind.ASK, number)
            else:
                self._result.refused += 1
            return
        self._result.waited_s += now - visit.at_s
        self._ends_s[name] = now + visit.lasts_s
        self._push(now + visit.lasts_s, _Kind.END, name=name)

    def _end(self, name: str, now: float) -> None:
        self._ends_s.pop(name, None)
        if (since_s := self._away_s.pop(name, None)) is not None:
            self._result.stalled_s += now - since_s
        self._fleet.close(name, now)

    def _lose(self, nodes: int, now: float) -> None:
        """The nodes with the most replicas, so that it hurts."""
        by_node: dict[str, list[Unit]] = {}
        for unit in self._fleet.units.values():
            by_node.setdefault(unit.replica.node, []).append(unit)
        fullest = sorted(by_node.items(), key=lambda each: (-sum(len(u.sessions) for u in each[1]), each[0]))
        for _, units in fullest[:nodes]:
            assert len(units) <= GPUS_PER_NODE
            for unit in units:
                for name in self._fleet.remove(unit, now):
                    self._away_s[name] = now
                    self._push(now + self._conditions.notice_s, _Kind.BACK, name=name)

    def _recover(self, name: str, now: float) -> None:
        if name not in self._away_s:
            return
        try:
            self._fleet.recover(name, now)
        except Full:
            self._push(now + RETRY_AFTER_S, _Kind.BACK, name=name)
            return
        self._result.stalled_s += now - self._away_s.pop(name)
        self._result.recovered += 1

    def _decide(self, now: float) -> None:
        fleet = self._fleet
        span = SpanNow(fleet.now(), self._arrivals, self._refusals, frame_age_s=self._age_s())
        self._arrivals = self._refusals = 0
        more = self._policy.wanted(span, now) - fleet.count(Phase.SERVING, Phase.STARTING)
        if more > 0:
            for unit in fleet.newest(Phase.LEAVING)[:more]:
                fleet.serve(unit, now)
                more -= 1
            for _ in range(more):
                if (ordered := fleet.order(now)) is None:
                    break
                ready_s = now + self._conditions.time_to_capacity_s
                self._push(ready_s, _Kind.READY, name=ordered.replica.replica_id)
        elif more < 0:
            # Those that start go first: they have no session yet. Then the newest, as with Serve.
            for unit in [*fleet.newest(Phase.STARTING), *fleet.newest(Phase.SERVING)][:-more]:
                fleet.leave(unit, now)
        self._result.peak_replicas = max(self._result.peak_replicas, len(fleet.units))

    def _age_s(self) -> float | None:
        """95th percentile of the age of frames: that of the replicas that have the fullest twentieth."""
        counts = sorted(self._fleet.with_sessions.items(), reverse=True)
        left = 0.05 * sum(sessions * replicas for sessions, replicas in counts)
        for sessions, replicas in counts:
            left -= sessions * replicas
            if sessions and replicas and left <= 0:
                return self._curve.at(sessions).age_s
        return None

    def _balance(self, now: float) -> None:
        if not self._policy.moves:
            return
        moved = int(self._fleet.balance(now))
        room = round(self._conditions.moves_per_s * self._conditions.balance_every_s)
        for unit in self._fleet.newest(Phase.LEAVING):
            while unit.sessions and moved < room:
                if not self._fleet.move_out(unit, now):
                    room = 0
                else:
                    moved += 1
        self._result.moves += moved

    def _settled(self) -> Result:
        end_s, result, fleet = self._trace.duration_s, self._result, self._fleet
        for since_s in self._away_s.values():
            result.stalled_s += end_s - since_s
        fleet.settle(end_s)
        result.gpu_hours = fleet.gpu_s / 3600
        result.seconds_with = dict(fleet.seconds_with)
        points = [(count * s, self._curve.at(count)) for count, s in fleet.seconds_with.items() if count]
        result.session_s = sum(session_s for session_s, _ in points)
        result.stalled_s += result.moves * self._conditions.move_stall_s
        # Away from a replica a session has a place in no curve; in a move it has.
        away_s = result.stalled_s - result.moves * self._conditions.move_stall_s
        whole_s = result.session_s + away_s
        if whole_s:
            in_time_s = sum(session_s * point.attainment for session_s, point in points)
            played_s = sum(session_s * point.play_ratio for session_s, point in points)
            in_moves_s = result.moves * self._conditions.move_stall_s
            result.attainment = max(0.0, in_time_s - in_moves_s) / whole_s
            result.play_ratio = max(0.0, played_s - in_moves_s) / whole_s
        return result
