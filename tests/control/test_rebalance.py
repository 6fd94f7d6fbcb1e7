"""Which session leaves a full replica for an emptier one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.cost import FrameCost
from rearview.contract.lease import Load, Usage
from rearview.control.placement import Asked, Replica
from rearview.control.rebalance import REST_S, Movable, Shift, rebalance

pytestmark = pytest.mark.unit

PIXELS = 100.0
SLOTS = 8


def replica(name: str, ms: float | None = 10.0, span: str = "fused", slots: int = SLOTS) -> Replica:
    """One whose frames take so long; None: it does not say."""
    cost = None if ms is None else FrameCost(int(PIXELS), ms / 1000, 0.0, 0.0, ())
    return Replica(name, span, f"tcp://{name}", "n0", slots, slots, cost)


def session(name: str, *lane: str, frame_rate: float = 20.0, moved_s: float = float("-inf")) -> Movable:
    return Movable(name, lane, Asked(Load(frame_rate, frame_rate * PIXELS)), moved_s)


def usage_of(sessions: Sequence[Movable]) -> Mapping[str, Usage]:
    """What their leases take."""
    held, pixels = Counter[str](), Counter[str]()
    for each in sessions:
        held.update(each.lane)
        pixels.update({name: int(each.asked.load.pixels_per_s) for name in each.lane})
    return {name: Usage(held[name], Load(0.0, pixels[name])) for name in held}


def shift(replicas: Sequence[Replica], sessions: Sequence[Movable], now: float = 0.0) -> Shift | None:
    return rebalance(replicas, usage_of(sessions), sessions, now)


FULL = [session(f"s{n}", "a") for n in range(4)]
"""0.8 of the time of one replica."""


def test_a_session_leaves_a_full_replica_for_an_empty_one() -> None:
    assert shift([replica("a"), replica("b")], FULL) == Shift("s3", ("b",))


@pytest.mark.parametrize(
    ("replicas", "sessions"),
    [
        ([replica("a")], FULL),
        ([replica("a"), replica("b")], FULL[:2]),
        ([replica("a"), replica("b", 40.0)], FULL),
        ([replica("a"), replica("b", slots=0)], FULL),
        ([replica("a"), replica("b")], [*FULL, *(session(f"t{n}", "b") for n in range(3))]),
        ([replica("a"), replica("b", span="other")], FULL),
    ],
    ids=["no other", "not full", "too slow", "no slot", "nearly level", "another span"],
)
def test_none_leaves_where_that_is_not_worth_it(replicas: list[Replica], sessions: list[Movable]) -> None:
    assert shift(replicas, sessions) is None


def test_without_costs_slots_tell_who_is_full() -> None:
    replicas = [replica("a", None, slots=4), replica("b", None, slots=4)]
    assert shift(replicas, FULL) == Shift("s3", ("b",))
    assert shift(replicas, FULL[:2]) == Shift("s1", ("b",))
    assert shift(replicas, FULL[:1]) is None


def test_of_a_lane_only_the_full_replica_changes() -> None:
    replicas = [replica("e", 1.0, "encode"), replica("a"), replica("b")]
    sessions = [session(f"s{n}", "e", "a") for n in range(4)]
    assert shift(replicas, sessions) == Shift("s3", ("e", "b"))


def test_a_session_rests_after_a_move() -> None:
    sessions = [session(f"s{n}", "a", moved_s=100.0) for n in range(4)]
    replicas = [replica("a"), replica("b")]
    assert shift(replicas, sessions, 100.0 + REST_S - 1) is None
    assert shift(replicas, sessions, 100.0 + REST_S) is not None


def test_the_heaviest_that_helps_goes_first_and_only_ones_own() -> None:
    mine = [session("light", "a", frame_rate=5.0)]
    others = [session("heavy", "a", frame_rate=80.0)]
    replicas = [replica("a"), replica("b")]
    assert rebalance(replicas, usage_of([*mine, *others]), mine, 0.0) == Shift("light", ("b",))
    assert rebalance(replicas, usage_of([*mine, *others]), [], 0.0) is None


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(st.sampled_from([2.0, 8.0, 10.0, 11.0, 30.0, None]), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=24),
    st.integers(0, 1 << 16),
)
def test_it_ends_in_silence_whoever_decides_in_whatever_order(
    costs_ms: list[float | None], placed: list[tuple[int, int]], seed: int
) -> None:
    """Ingresses take turns at random, each with sessions of its own; none moves one twice within the rest."""
    chance = random.Random(seed)
    replicas = [replica(f"r{n}", ms, slots=24) for n, ms in enumerate(costs_ms)]
    known = {
        f"s{n}": session(f"s{n}", f"r{at % len(replicas)}", frame_rate=rate)
        for n, (at, rate) in enumerate(placed)
    }
    owners = {name: chance.choice("xyz") for name in known}
    moved: dict[str, float] = {}
    silent: set[str] = set()
    for now in range(0, 100_000, 7):
        ingress = chance.choice("xyz")
        mine = [each for name, each in known.items() if owners[name] == ingress]
        found = rebalance(replicas, usage_of(list(known.values())), mine, now)
        if found is None:
            rested = all(now - moved.get(each.session_id, -REST_S) >= REST_S for each in mine)
            silent = silent | {ingress} if rested else silent
            if silent == set("xyz"):
                break
            continue
        assert now - moved.get(found.session_id, -REST_S) >= REST_S
        moved[found.session_id], silent = now, set()
        known[found.session_id] = Movable(found.session_id, found.lane, known[found.session_id].asked, now)
    assert silent == set("xyz"), "it never ends"
