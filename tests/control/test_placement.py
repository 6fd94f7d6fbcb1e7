"""Choosing a lane."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from rearview.control.placement import Replica, place
from rearview.errors import Reason, Refused

pytestmark = pytest.mark.unit


def replica(name: str, span: str = "fused", *, node: str = "n0", free: int = 4, slots: int = 4) -> Replica:
    return Replica(
        replica_id=name, span=span, address=f"tcp://{name}", node=node, free_slots=free, slots=slots
    )


def test_a_lane_has_one_replica_per_span_in_the_order_of_the_chain() -> None:
    replicas = [replica("d", "decode"), replica("e", "encode"), replica("u", "denoise-0")]
    assert place(["encode", "denoise-0", "decode"], replicas, {}) == ("e", "u", "d")


def test_the_replica_with_fewest_sessions_is_taken() -> None:
    assert place(["fused"], [replica("a"), replica("b")], {"a": 2, "b": 1}) == ("b",)


def test_sessions_count_relative_to_slots() -> None:
    large, small = replica("a", free=16, slots=16), replica("b", free=2, slots=2)
    assert place(["fused"], [small, large], {"a": 3, "b": 1}) == ("a",)


def test_equal_replicas_are_taken_by_the_node_of_the_span_before() -> None:
    replicas = [replica("e", "encode", node="n1"), replica("a", node="n0"), replica("b", node="n1")]
    assert place(["encode", "fused"], replicas, {}) == ("e", "b")


def test_load_counts_before_the_node() -> None:
    replicas = [replica("e", "encode", node="n1"), replica("a", node="n0"), replica("b", node="n1")]
    assert place(["encode", "fused"], replicas, {"b": 1}) == ("e", "a")


def test_equal_replicas_are_taken_by_id_whatever_their_order() -> None:
    replicas = [replica(name) for name in "cab"]
    assert place(["fused"], replicas, {}) == place(["fused"], replicas[::-1], {}) == ("a",)


def test_slots_in_use_without_a_lease_count() -> None:
    assert place(["fused"], [replica("a", free=1), replica("b", free=3)], {}) == ("b",)


def test_leases_newer_than_the_report_count() -> None:
    assert place(["fused"], [replica("a", free=4), replica("b", free=1)], {"a": 4}) == ("b",)


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
        place(["fused"], replicas, sessions, retry_after_s=3.0)
    assert caught.value.reason is Reason.NO_CAPACITY
    assert caught.value.retry_after_s == 3.0
    assert caught.value.metadata == {"span": "fused"}


@pytest.mark.parametrize("seed", range(20))
def test_filling_up_uses_every_slot_once_and_keeps_replicas_level(seed: int) -> None:
    rng = random.Random(seed)
    spans = ["encode", "denoise-0", "decode"][: rng.randint(1, 3)]
    slots = {f"{span}-{i}": rng.randint(1, 6) for span in spans for i in range(rng.randint(1, 4))}
    replicas = [replica(name, name.rpartition("-")[0], free=n, slots=n) for name, n in slots.items()]
    capacity = min(sum(n for name, n in slots.items() if name.rpartition("-")[0] == span) for span in spans)
    sessions: Counter[str] = Counter()
    for _ in range(capacity):
        lane = place(spans, replicas, sessions)
        for span, chosen in zip(spans, lane, strict=True):
            peers = [r for r in replicas if r.span == span]
            assert sessions[chosen] / slots[chosen] == min(sessions[r.replica_id] / r.slots for r in peers)
        sessions.update(lane)
        assert all(sessions[name] <= n for name, n in slots.items())
    with pytest.raises(Refused):
        place(spans, replicas, sessions)
