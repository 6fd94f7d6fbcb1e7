"""What the policy makes of a day, a crowd and a quiet night: sessions that come and go by chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from rearview.control.forecast import NO_HISTORY, Sample, growth, seen
from rearview.control.scaling import START, Figures, Phase, ReplicaNow, SpanNow, decide

pytestmark = pytest.mark.unit

SHARE = 0.1
"""What a session takes of a replica."""
STEP_S = 5.0
DAY_S = 36000
"""A short one."""
FIGURES = Figures(max_replicas=1000, node_s=120.0, hold_s=120.0, target_share=0.7, slots=10)


@dataclass
class Pool:
    """Replicas that take sessions in turn; sessions move together without a word."""

    figures: Figures
    serving: int = 1
    ordered: list[float] = field(default_factory=list)
    """When each is ready."""
    leaving: list[float] = field(default_factory=list)
    """When each session ends."""
    refused: int = 0
    asked: int = 0
    replica_s: float = 0.0
    changes: list[tuple[float, int]] = field(default_factory=list)

    def run(self, rate: Callable[[float], float], until_s: float, life_s: float = 600.0) -> Pool:
        """`rate`: arrivals per second at a time; who is refused does not come back."""
        random, state, now = Random(7), START, 0.0
        while now < until_s:
            self.leaving = [end for end in self.leaving if end > now]
            self.serving += sum(ready <= now for ready in self.ordered)
            self.ordered = [ready for ready in self.ordered if ready > now]
            arrivals = _poisson(random, rate(now) * STEP_S)
            room = max(0, self.serving * 10 - len(self.leaving))
            admitted = min(arrivals, room)
            self.leaving += [now + random.expovariate(1 / life_s) for _ in range(admitted)]
            self.asked, self.refused = self.asked + arrivals, self.refused + arrivals - admitted
            decision, state = decide(self._now(arrivals, arrivals - admitted), self.figures, state, now)
            self._order(decision.wanted, now)
            self.replica_s += STEP_S * (self.serving + len(self.ordered))
            now += STEP_S
        return self

    def _now(self, arrivals: int, refusals: int) -> SpanNow:
        sessions = len(self.leaving)
        each = [sessions // self.serving + (n < sessions % self.serving) for n in range(self.serving)]
        replicas = [ReplicaNow(SHARE * count, count, 10) for count in each]
        coming = [ReplicaNow(phase=Phase.STARTING)] * len(self.ordered)
        return SpanNow([*replicas, *coming], arrivals, refusals)

    def _order(self, wanted: int, now: float) -> None:
        there = self.serving + len(self.ordered)
        if wanted != there:
            self.changes.append((now, wanted))
        self.ordered += [now + self.figures.node_s] * max(0, wanted - there)
        self.serving -= max(0, there - wanted - len(self.ordered))


def _poisson(random: Random, mean: float) -> int:
    count, left = 0, random.expovariate(1.0)
    while left < mean:
        count, left = count + 1, left + random.expovariate(1.0)
    return count


def without_look_ahead(figures: Figures) -> Figures:
    """A replica seems to be there at once."""
    return replace(figures, window_s=1e9)


def crowd(now: float) -> float:
    return 1.0 if now < 1800 or now > 3600 else 8.0


def test_a_flash_crowd_is_met_earlier_when_its_growth_is_seen() -> None:
    ahead = Pool(FIGURES, serving=100).run(crowd, 7200)
    behind = Pool(without_look_ahead(FIGURES), serving=100).run(crowd, 7200)
    assert behind.refused > 0.04 * behind.asked
    assert ahead.refused < 0.7 * behind.refused, "what came before any order could be ready is lost to both"
    first = next(now for now, wanted in ahead.changes if now > 1800 and wanted > 200)
    assert first < 1850
    assert ahead.changes[-1][1] < 110, "the crowd has gone"


def test_a_day_is_followed_with_nobody_refused_and_few_changes() -> None:
    def day(now: float) -> float:
        return 1.0 - 0.8 * math.cos(2 * math.pi * now / DAY_S)

    pool = Pool(replace(FIGURES, window_s=900.0, hold_s=600.0), serving=40).run(day, DAY_S)
    assert pool.refused == 0
    needed_s = sum(day(second) * 600 * SHARE / 0.7 * 60 for second in range(0, DAY_S, 60))
    assert pool.replica_s < 1.25 * needed_s
    assert len(pool.changes) < 400


def test_a_steady_load_asks_for_no_more_than_its_peaks() -> None:
    pool = Pool(FIGURES, serving=100).run(lambda now: 1.0, 14400)
    assert pool.refused == 0
    wanted = [count for now, count in pool.changes if now > 3600]
    assert max(wanted) - min(wanted) <= 16, "600 sessions come and go by 25"
    assert pool.replica_s < 14400 * 600 * SHARE / 0.7 * 1.15


def test_a_night_without_anybody_costs_nothing() -> None:
    figures = replace(FIGURES, min_replicas=0, idle_s=900.0)
    pool = Pool(figures, serving=4).run(lambda now: 0.02 if now < 3600 else 0.0, 20000)
    assert pool.changes[-1][1] == 0
    assert pool.changes[-1][0] > 3600 + 900


def test_growth_is_what_chance_does_not_explain() -> None:
    history = NO_HISTORY
    for second in range(0, 301, 5):
        history = seen(history, 100.0 + (second % 10), 5, 300.0, float(second))
    assert growth(history, 300.0) == 0.0
    for second in range(305, 361, 5):
        history = seen(history, 100.0 + 10.0 * (second - 300), 50, 300.0, float(second))
    assert 5.0 < growth(history, 300.0) < 10.0


def test_a_history_is_as_long_as_its_window_and_says_nothing_beyond_it() -> None:
    history = NO_HISTORY
    assert growth(history, 60.0) == 0.0
    for tick in range(10000):
        history = seen(history, float(tick), 1, 60.0, tick * 0.1)
    assert len(history) <= 70
    assert history[0].time_s <= history[-1].time_s - 60.0
    assert history[-1] == Sample(pytest.approx(999.9), 9999.0, 10000)
    assert growth(history[-3:], 60.0) == 0.0
