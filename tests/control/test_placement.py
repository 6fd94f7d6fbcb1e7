"""Choosing a lane."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.controls import WeightedControl
from rearview.contract.cost import FrameCost
from rearview.contract.lease import NO_LOAD, Load, Usage
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.control.placement import LOAD_STEP, Asked, Full, Replica, place
from rearview.errors import Reason, Refused

pytestmark = pytest.mark.unit


def replica(name: str, span: str = "fused", *, node: str = "n0", free: int = 4, slots: int = 4) -> Replica:
    return Replica(
        replica_id=name, span=span, address=f"tcp://{name}", node=node, free_slots=free, slots=slots
    )


def leased(sessions: Mapping[str, int], **pixels_per_s: float) -> Mapping[str, Usage]:
    """What so many leases take of each replica; `pixels_per_s` of some."""
    return {name: Usage(n, Load(0.0, pixels_per_s.get(name, 0.0))) for name, n in sessions.items()}


def test_a_lane_has_one_replica_per_span_in_the_order_of_the_chain() -> None:
    replicas = [replica("d", "decode"), replica("e", "encode"), replica("u", "denoise-0")]
    assert place(["encode", "denoise-0", "decode"], replicas, {}) == ("e", "u", "d")


def test_the_replica_with_fewest_sessions_is_taken() -> None:
    assert place(["fused"], [replica("a"), replica("b")], leased({"a": 2, "b": 1})) == ("b",)


def test_sessions_count_relative_to_slots() -> None:
    large, small = replica("a", free=16, slots=16), replica("b", free=2, slots=2)
    assert place(["fused"], [small, large], leased({"a": 3, "b": 1})) == ("a",)


def test_equal_replicas_are_taken_by_the_node_of_the_span_before() -> None:
    replicas = [replica("e", "encode", node="n1"), replica("a", node="n0"), replica("b", node="n1")]
    assert place(["encode", "fused"], replicas, {}) == ("e", "b")


def test_load_counts_before_the_node() -> None:
    replicas = [replica("e", "encode", node="n1"), replica("a", node="n0"), replica("b", node="n1")]
    assert place(["encode", "fused"], replicas, leased({"b": 1})) == ("e", "a")


def test_equal_replicas_are_taken_by_id_whatever_their_order() -> None:
    replicas = [replica(name) for name in "cab"]
    assert place(["fused"], replicas, {}) == place(["fused"], replicas[::-1], {}) == ("a",)


def test_slots_in_use_without_a_lease_count() -> None:
    assert place(["fused"], [replica("a", free=1), replica("b", free=3)], {}) == ("b",)


def test_leases_newer_than_the_report_count() -> None:
    assert place(["fused"], [replica("a", free=4), replica("b", free=1)], leased({"a": 4})) == ("b",)


@pytest.mark.parametrize(
    ("replicas", "sessions"),
    [
        ([], {}),
        ([replica("a", "other")], {}),
        ([replica("a", free=0)], {}),
        ([replica("a")], {"a": 4}),
        ([replica("a", free=0, slots=0)], {}),
    ],
    ids=["none", "another span's", "reported full", "full by leases", "without slots"],
)
def test_a_span_without_room_refuses_with_a_retry_hint(
    replicas: list[Replica], sessions: dict[str, int]
) -> None:
    with pytest.raises(Refused) as caught:
        place(["fused"], replicas, leased(sessions), retry_after_s=3.0)
    assert caught.value.reason is Reason.NO_CAPACITY
    assert caught.value.retry_after_s == 3.0
    assert caught.value.metadata == {"span": "fused", "limit": "slots"}


@pytest.mark.parametrize("seed", range(20))
def test_filling_up_uses_every_slot_once_and_keeps_replicas_level(seed: int) -> None:
    rng = random.Random(seed)
    spans = ["encode", "denoise-0", "decode"][: rng.randint(1, 3)]
    slots = {f"{span}-{i}": rng.randint(1, 6) for span in spans for i in range(rng.randint(1, 4))}
    replicas = [replica(name, name.rpartition("-")[0], free=n, slots=n) for name, n in slots.items()]
    capacity = min(sum(n for name, n in slots.items() if name.rpartition("-")[0] == span) for span in spans)
    sessions: Counter[str] = Counter()
    for _ in range(capacity):
        lane = place(spans, replicas, leased(sessions))
        for span, chosen in zip(spans, lane, strict=True):
            peers = [r for r in replicas if r.span == span]
            assert sessions[chosen] / slots[chosen] == min(sessions[r.replica_id] / r.slots for r in peers)
        sessions.update(lane)
        assert all(sessions[name] <= n for name, n in slots.items())
    with pytest.raises(Refused):
        place(spans, replicas, leased(sessions))


# --- load

PIXELS = 100.0
"""Of the picture that was timed."""


def measured(
    name: str, ms: float, *, span: str = "fused", slots: int = 4, share: float = 0.0, pixels: float = 0.0
) -> Replica:
    """A replica where a frame takes so long, and whose sessions declared so much when it reported."""
    cost = FrameCost(int(PIXELS), ms / 1000, 0.0, 0.0, ())
    return Replica(name, span, f"tcp://{name}", "n0", slots, slots, cost, share, pixels)


def asked(frame_rate: float, max_load: float | None = None) -> Asked:
    return Asked(Load(frame_rate, frame_rate * PIXELS), max_load=max_load)


def test_the_replica_with_the_least_load_is_taken_whatever_slots_say() -> None:
    fast, slow = measured("fast", 5), measured("slow", 20)
    usage = leased({"fast": 2, "slow": 1}, fast=60 * PIXELS, slow=30 * PIXELS)  # 0.3 and 0.6
    assert place(["fused"], [slow, fast], usage) == ("fast",)


def test_loads_that_differ_by_less_than_is_measured_leave_it_to_slots() -> None:
    one, other = measured("one", 10), measured("other", 10)
    most = LOAD_STEP / 0.010 * PIXELS * 0.4
    usage = leased({"one": 1, "other": 2}, one=most)
    assert place(["fused"], [one, other], usage) == ("one",)


def test_a_replica_that_tells_no_cost_leaves_it_to_slots() -> None:
    loaded, silent = measured("a", 20, share=0.9), replica("b")
    assert place(["fused"], [loaded, silent], leased({"b": 1})) == ("a",)


def test_no_load_is_too_much_where_none_is_set_and_slots_are_a_hard_limit_where_one_is() -> None:
    assert place(["fused"], [measured("a", 1000)], {}, asked(240.0)) == ("a",)
    with pytest.raises(Full) as caught:
        place(["fused"], [measured("a", 1, slots=1)], leased({"a": 1}), asked(1.0, max_load=1.0))
    assert caught.value.metadata["limit"] == "slots"


def test_a_session_that_would_take_a_replica_past_its_load_is_refused_with_its_span() -> None:
    replicas = [measured("e", 1, span="encode"), measured("d", 20, span="decode", share=0.5)]
    spans = ["encode", "decode"]
    assert place(spans, replicas, {}, asked(20.0, max_load=0.9)) == ("e", "d")
    with pytest.raises(Full) as caught:
        place(spans, replicas, {}, asked(20.5, max_load=0.9))
    assert caught.value.metadata == {"span": "decode", "limit": "load"}
    assert caught.value.retry_after_s is not None
    assert not caught.value.is_certain


def test_another_replica_that_has_time_is_taken_before_any_refusal() -> None:
    replicas = [measured("a", 10, share=0.7), measured("b", 30, share=0.1)]
    assert place(["fused"], replicas, {}, asked(10.0, max_load=0.8)) == ("b",)
    assert place(["fused"], replicas, {}, asked(30.0)) == ("b",)
    assert place(["fused"], replicas, {}, asked(20.0, max_load=0.8)) == ("b",)
    with pytest.raises(Full):
        place(["fused"], replicas, {}, asked(30.0, max_load=0.8))


def test_leases_beyond_the_report_count_on_top_of_it_and_a_report_beyond_them_counts_itself() -> None:
    told = measured("a", 10, share=0.3, pixels=30 * PIXELS)
    assert told.load(Usage(1, Load(30.0, 30 * PIXELS))) == pytest.approx(0.3)
    assert told.load(Usage(2, Load(50.0, 50 * PIXELS))) == pytest.approx(0.5)
    assert told.load(Usage(0, NO_LOAD)) == pytest.approx(0.3)


def test_a_session_counts_with_the_steps_that_it_may_ask_for_and_the_cache_that_it_has() -> None:
    cost = FrameCost(int(PIXELS), 0.001, 0.010, 0.030, steps=(1, 2))
    load = Load(10.0, 10 * PIXELS)
    shares = [cost.share(load, steps, is_cached=False) for steps in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.01, 0.11, 0.21, 0.21])
    assert cost.share(load, 3, is_cached=True) == cost.most(load.pixels_per_s) == pytest.approx(0.61)


def test_guidance_that_predicts_twice_counts_twice_in_its_steps() -> None:
    cost = FrameCost(int(PIXELS), 0.001, 0.010, 0.030, steps=(0, 1))
    guided = Settings(guidance=Guidance.FULL, guidance_scale=2.0)
    first = replace(guided, guidance=Guidance.INITIALIZE)
    idle = replace(guided, guidance_scale=1.0)
    shares = []
    for under in (Settings(), guided, first, idle):
        spec = SessionSpec("0" * 32, 64, 64, 2, under)
        shares.append(Asked.of(spec, Load(10.0, 10 * PIXELS)).share(cost))
    assert shares == pytest.approx([0.21, 0.41, 0.31, 0.21])


def test_controls_count_in_each_step_and_prediction_of_theirs() -> None:
    cost = FrameCost(int(PIXELS), 0.001, 0.010, 0.030, (0, 1), control_s=0.004)
    one = Settings(controls=(WeightedControl("edges"), WeightedControl("tile", 0.0)))
    two = replace(one, controls=(WeightedControl("edges"), WeightedControl("tile")))
    guided = replace(two, guidance=Guidance.FULL, guidance_scale=2.0)
    load = Load(10.0, 10 * PIXELS)
    shares = [cost.share(load, 2, is_cached=False, settings=under) for under in (one, two, guided)]
    assert shares == pytest.approx([0.29, 0.37, 0.73])


def test_what_is_drawn_for_controls_counts_once_a_frame() -> None:
    """Of each that acts its own, whatever the steps; and it is told, where there is any."""
    cost = FrameCost(int(PIXELS), 0.001, 0.010, 0.030, (0, 1), 0.004, {"edges": 0.002, "depth": 0.05})
    asked = (("edges", 1.0),), (("edges", 1.0), ("depth", 0.5)), (("depth", 0.0),), (("pose", 1.0),)
    shares = [
        cost.share(
            Load(10.0, 10 * PIXELS),
            2,
            is_cached=False,
            settings=Settings(controls=tuple(WeightedControl(*one) for one in controls)),
        )
        for controls in asked
    ]
    assert shares == pytest.approx([0.31, 0.89, 0.21, 0.29])
    assert FrameCost.of(json.loads(json.dumps(cost.described()))) == cost
    assert "draw_s" not in replace(cost, draw_s={}).described()


def test_a_session_that_goes_on_counts_by_its_newest_settings() -> None:
    cost = FrameCost(int(PIXELS), 0.001, 0.010, 0.030, steps=(0, 1))
    guided = Settings(guidance=Guidance.FULL, guidance_scale=2.0)
    spec, load = SessionSpec("0" * 32, 64, 64, 2), Load(10.0, 10 * PIXELS)
    assert Asked.of(spec, load, guided).share(cost) == pytest.approx(0.41)


def test_that_leases_fill_a_span_is_certain_and_that_a_report_does_is_not() -> None:
    for replicas, usage, is_certain in (
        ([replica("a", free=0), replica("b")], leased({"a": 4, "b": 5}), True),
        ([replica("a", free=0), replica("b")], leased({"b": 4}), False),
        ([], leased({}), False),
    ):
        with pytest.raises(Full) as caught:
            place(["fused"], replicas, usage)
        assert caught.value.is_certain is is_certain


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0.5, 40.0), min_size=1, max_size=4),
    st.lists(st.floats(0.5, 60.0), max_size=40),
    st.floats(0.3, 1.0),
)
def test_no_replica_is_taken_past_its_load_and_none_is_refused_that_fits(
    costs_ms: list[float], rates: list[float], max_load: float
) -> None:
    replicas = [measured(f"r{n}", ms, slots=8) for n, ms in enumerate(costs_ms)]
    held: dict[str, list[float]] = {each.replica_id: [] for each in replicas}

    def load_of(each: Replica, *more: float) -> float:
        assert each.cost is not None
        return each.cost.most(sum([*held[each.replica_id], *more]) * PIXELS)

    for rate in rates:
        usage = {
            name: Usage(len(those), Load(sum(those), sum(those) * PIXELS)) for name, those in held.items()
        }
        fitting = [
            each
            for each in replicas
            if len(held[each.replica_id]) < 8 and load_of(each, rate) <= max_load * (1 + 1e-9)
        ]
        try:
            (chosen,) = place(["fused"], replicas, usage, asked(rate, max_load))
        except Full:
            assert fitting == []
            continue
        (taken,) = (each for each in fitting if each.replica_id == chosen)
        assert load_of(taken) <= min(map(load_of, fitting)) + LOAD_STEP * 1.001
        held[chosen].append(rate)
