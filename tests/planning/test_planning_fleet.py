"""Sessions of a fleet in virtual time: the fast order against the plain one, and what a day is made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from rearview.contract.lease import Load, Usage
from rearview.control.placement import Asked, Full, Replica, place
from rearview.control.scaling import Figures, Phase, ReplicaNow, SpanNow
from rearview.planning.costs import H200
from rearview.planning.curves import Curve, Point
from rearview.planning.fleet import SPAN, Fleet
from rearview.planning.policies import Fixed, Ours, Policy, Utilisation
from rearview.planning.ranking import Ranking
from rearview.planning.simulation import Conditions, Result, simulate
from rearview.planning.streams import Streams
from rearview.planning.traces import TRACES, Trace, Visit, trace

pytestmark = pytest.mark.unit

COST = H200.frame(2)
STREAMS = Streams()
SHARE = STREAMS.share(H200)
CURVE = Curve(
    [Point(n, n * SHARE, 1.0 if n < 11 else 0.2, 1.0 if n < 11 else 0.9, 0.5) for n in range(1, 14)]
)
ASKED = STREAMS.asked(0.95)
FIGURES = Figures(max_replicas=64, target_share=0.82, max_share=0.95, slots=16, hold_s=60.0)


def answer(placed: Callable[[], str]) -> object:
    """The replica, or all that is said of there being none."""
    try:
        return placed()
    except Full as full:
        return full.message, full.metadata, full.is_certain, full.retry_after_s


@pytest.mark.parametrize("seed", range(6))
def test_the_fast_order_answers_as_placement_does(seed: int) -> None:
    """Of replicas of several sizes, costs and reports, that come, go, fill and empty by chance."""
    random = Random(seed)
    costs = [COST, replace(COST, step_s=2 * COST.step_s), replace(COST, once_s=3 * COST.once_s)]
    kinds = [replace(ASKED, max_load=limit) for limit in (None, 0.5, 0.95)]
    kinds.append(Asked(Load.of(30.0, 768, 512), 2, max_load=0.8))
    replicas: dict[str, Replica] = {}
    usage: dict[str, Usage] = {}
    ranking, refused = Ranking(SPAN), 0

    def tell(replica_id: str) -> None:
        ranking.put(replicas[replica_id], usage[replica_id])

    for _ in range(600):
        action = random.random()
        if action < 0.12 or not replicas:
            name, slots = f"r{random.randrange(40):02d}", random.choice((2, 4, 12))
            free, share = random.randint(0, slots), random.choice((0.0, 0.0, 0.37))
            node = f"n{random.randrange(3)}"
            replicas[name] = Replica(name, SPAN, "", node, free, slots, random.choice(costs), share, 1e5)
            usage[name] = Usage(0, Load(0.0, 0.0))
            tell(name)
        elif action < 0.16:
            name = random.choice(sorted(replicas))
            del replicas[name], usage[name]
            ranking.drop(name)
        elif action < 0.4:
            name = random.choice(sorted(replicas))
            fewer = max(0, usage[name].sessions - 1)
            usage[name] = Usage(fewer, Load(15.0 * fewer, 15.0 * 512 * 512 * fewer))
            tell(name)
        else:
            asked = random.choice(kinds)
            expected = answer(lambda asked=asked: place([SPAN], replicas.values(), usage, asked)[0])
            assert answer(lambda asked=asked: ranking.place(asked)) == expected
            if not isinstance(expected, str):
                refused += 1
                continue
            sessions = usage[expected].sessions + 1
            pixels = usage[expected].load.pixels_per_s + asked.load.pixels_per_s
            usage[expected] = Usage(sessions, Load(15.0 * sessions, pixels))
            tell(expected)
    assert refused > 10
    assert len(ranking) == len(replicas)


def day(
    policy: Policy, visits: Trace, gpus: int = 64, at_start: int = 4, conditions: Conditions | None = None
) -> tuple[Result, Fleet]:
    fleet = Fleet(COST, ASKED, 16, gpus, keeps_stays=True)
    return simulate(visits, policy, fleet, CURVE, conditions or Conditions(), at_start), fleet


def visits(count: int, every_s: float, lasts_s: float, duration_s: float = 3600.0) -> Trace:
    return Trace("by hand", duration_s, [Visit(n * every_s, lasts_s) for n in range(count)])


def test_seconds_of_sessions_and_of_gpus_are_counted_once() -> None:
    result, fleet = day(Fixed(4), visits(20, 10.0, 600.0))
    assert result.session_s == pytest.approx(20 * 600.0)
    assert result.gpu_hours == pytest.approx(4.0)
    assert sum(fleet.seconds_with.values()) == pytest.approx(4 * 3600.0)
    assert fleet.stays is not None
    assert Counter(stay.session_id for stay in fleet.stays).most_common(1)[0][1] == 1
    assert (result.attainment, result.play_ratio, result.refused, result.moves) == (1.0, 1.0, 0, 0)


def test_who_is_refused_asks_again_and_is_counted_apart() -> None:
    """Ten fit; the eleventh gets the place of one that ends while it asks, the twelfth loses patience."""
    short = Trace("by hand", 600.0, [Visit(0.0, 20.0), *[Visit(0.0, 500.0)] * 9, *[Visit(1.0, 500.0)] * 2])
    result, _ = day(Fixed(1), short, gpus=1, at_start=1)
    assert (result.asked, result.refused) == (12, 1)
    assert 19.0 <= result.waited_s <= 22.0
    assert result.attainment == 1.0


def test_a_crowd_is_answered_with_replicas_that_take_their_time() -> None:
    conditions = Conditions(time_to_capacity_s=300.0)
    crowd = Trace("by hand", 1800.0, [Visit(100.0 + n, 1700.0) for n in range(80)])
    result, fleet = day(Ours(FIGURES), crowd, at_start=1, conditions=conditions)
    assert result.peak_replicas >= 9
    assert result.refused > 0
    assert min(unit.ordered_s for unit in list(fleet.units.values())[1:]) < 200.0
    assert fleet.stays is not None
    assert all(stay.start_s >= 400.0 for stay in fleet.stays if stay.replica_id != "r000000")


def test_ours_empties_replicas_by_moves_and_the_other_waits_for_sessions_to_end() -> None:
    few = Trace("by hand", 7200.0, [Visit(0.0, 7000.0 if n % 10 == 0 else 300.0) for n in range(60)])
    ours, fleet = day(Ours(FIGURES), few, at_start=8)
    theirs, _ = day(Utilisation(lambda each: each.share, 0.82, 64), few, at_start=8)
    assert ours.moves > 0 == theirs.moves
    assert ours.session_s == theirs.session_s
    assert ours.gpu_hours < 0.8 * theirs.gpu_hours
    assert ours.stalled_s == pytest.approx(0.2 * ours.moves)
    assert fleet.count(Phase.SERVING) == 1


def test_a_lost_node_takes_sessions_that_come_back_elsewhere() -> None:
    lost = Trace("by hand", 1200.0, [Visit(0.0, 1100.0) for _ in range(80)], ((600.0, 1),))
    result, fleet = day(Fixed(16), lost, at_start=16)
    assert result.recovered == 40
    assert result.stalled_s == pytest.approx(2.0 * 40)
    assert result.play_ratio == pytest.approx(1 - 80.0 / (80 * 1100.0))
    assert fleet.count(Phase.SERVING) == 16, "others came for those that were lost"
    assert result.session_s == pytest.approx(80 * 1100.0 - 80.0)


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_has_as_many_sessions_as_it_says(name: str) -> None:
    found = trace(name, 400.0, duration_s=14400.0, life_s=600.0)

    def there(at_s: float) -> int:
        return sum(each.at_s <= at_s < each.at_s + each.lasts_s for each in found.visits)

    for at_s in (0.0, 3000.0, 7100.0, 9000.0, 14000.0):
        wanted = 400.0 * TRACES[name](at_s / 14400.0)
        assert abs(there(at_s) - wanted) < 5 * math.sqrt(wanted) + 0.1 * wanted, at_s
    assert found.visits == trace(name, 400.0, duration_s=14400.0, life_s=600.0).visits
    assert [each.at_s for each in found.visits] == sorted(each.at_s for each in found.visits)


def span(*shares: float, starting: int = 0) -> SpanNow:
    coming = [ReplicaNow(phase=Phase.STARTING)] * starting
    return SpanNow([*[ReplicaNow(share, 1, 16) for share in shares], *coming])


def test_the_usual_autoscaler_has_its_tolerance_stabilisation_and_limit() -> None:
    policy = Utilisation(lambda each: each.share, 0.5, 100)
    assert policy.wanted(span(0.5, 0.54), 0.0) == 2, "within a tenth"
    assert policy.wanted(span(0.9, 0.9), 15.0) == 4
    assert policy.wanted(span(0.9, 0.9, starting=2), 30.0) == 4, "what starts counts as unused"
    assert policy.wanted(span(0.1, 0.1, 0.1, 0.1), 45.0) == 4, "the most of five minutes holds"
    assert policy.wanted(span(0.1, 0.1, 0.1, 0.1), 400.0) == 1
    assert Utilisation(lambda each: each.share, 0.01, 100).wanted(span(1.0), 0.0) == 5, "no faster"
