"""Which replicas are spares."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.lease import NO_LOAD, Usage
from rearview.control.placement import Asked, Full, Replica, place
from rearview.control.spares import SPARE, Assignment, assign

pytestmark = pytest.mark.unit

SLOTS = 2


def replica(name: str, span: str = "fused", free: int = SLOTS) -> Replica:
    return Replica(name, span, f"tcp://{name}", "n0", free, SLOTS)


def leased(**sessions: int) -> Mapping[str, Usage]:
    return {name: Usage(n, NO_LOAD) for name, n in sessions.items()}


THREE = [replica(name) for name in "abc"]


@pytest.mark.parametrize(
    ("usage", "claimed", "spares", "dropped"),
    [
        ({}, {}, "c", ""),
        ({}, {"b": SPARE}, "b", ""),
        (leased(c=1), {}, "b", ""),
        (leased(c=1), {"c": SPARE}, "b", "c"),
        (leased(a=1, b=1, c=1), {"c": SPARE}, "", "c"),
        ({}, {"gone": SPARE}, "c", ("gone",)),
        (leased(c=1), {"c": "i1"}, "b", ""),
        ({}, {"c": "i1"}, "b", ""),
        ({}, {"b": SPARE, "c": SPARE}, "c", "b"),
    ],
    ids=[
        "the one that placement takes last",
        "who is one stays one",
        "only an empty one",
        "one that has sessions is active",
        "none is empty",
        "one that is gone",
        "one that was taken has gone to work",
        "one that was taken just now",
        "one too many",
    ],
)
def test_one_spare_of_three(
    usage: Mapping[str, Usage], claimed: Mapping[str, str], spares: str, dropped: str
) -> None:
    assert assign({"fused": 1}, THREE, usage, claimed) == Assignment(tuple(spares), tuple(dropped))


def test_a_replica_that_reports_sessions_is_no_spare_though_no_lease_says_so() -> None:
    assert assign({"fused": 1}, [replica("a"), replica("b", free=1)], {}, {}).spares == ("a",)


def test_the_last_replica_of_a_span_serves() -> None:
    assert assign({"fused": 1}, [replica("a")], {}, {"a": SPARE}) == Assignment((), ("a",))


def test_a_replica_stays_for_new_sessions_when_others_were_taken() -> None:
    assert assign({"fused": 2}, THREE, {}, {"c": "i1"}).spares == ("b",)
    assert assign({"fused": 2}, THREE, {}, {"c": "i1", "b": "i2"}).spares == ()


def test_every_span_has_its_own_and_one_that_wants_none_has_none() -> None:
    replicas = [replica(f"{span}{n}", span) for span in ("x", "y", "z") for n in range(3)]
    assert assign({"x": 1, "y": 2}, replicas, {}, {}).spares == ("x2", "y2", "y1")


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, SLOTS), min_size=1, max_size=6),
    st.integers(0, 3),
    st.dictionaries(st.integers(0, 7), st.sampled_from([SPARE, "i1"])),
)
def test_spares_are_empty_and_stay_what_they_are(
    sessions: list[int], wanted: int, claimed: dict[int, str]
) -> None:
    replicas = [replica(f"r{n}") for n in range(len(sessions))]
    usage = leased(**{f"r{n}": count for n, count in enumerate(sessions)})
    owners = {f"r{n}": owner for n, owner in claimed.items()}
    first = assign({"fused": wanted}, replicas, usage, owners)
    assert len(first.spares) <= min(wanted, len(replicas) - 1)
    assert all(sessions[int(each[1:])] == 0 for each in first.spares)
    assert {each for each in owners if owners[each] == SPARE} <= {*first.spares, *first.dropped}
    after = {each: owner for each, owner in owners.items() if each not in first.dropped}
    again = assign({"fused": wanted}, replicas, usage, after | dict.fromkeys(first.spares, SPARE))
    assert (set(again.spares), again.dropped) == (set(first.spares), ())


# --- what placement makes of them


def test_a_new_session_keeps_off_spares_and_one_that_goes_on_takes_them_last() -> None:
    asked = Asked(spares=frozenset("c"))
    for used, lane in ((leased(a=1), "b"), (leased(a=1, b=1), "a")):
        assert place(["fused"], THREE, used, asked) == (lane,)
        assert place(["fused"], THREE, used, Asked(goes_on=True, spares=frozenset("c"))) == (lane,)
    full = leased(a=2, b=2)
    with pytest.raises(Full) as caught:
        place(["fused"], THREE, full, asked)
    assert caught.value.is_certain
    assert place(["fused"], THREE, full, Asked(goes_on=True, spares=frozenset("c"))) == ("c",)


def test_a_spare_that_somebody_else_has_taken_is_the_very_last_room() -> None:
    full = leased(a=2)
    others = Asked(goes_on=True, spares=frozenset("b"), taken=frozenset("c"))
    assert place(["fused"], THREE, full, others) == ("b",)
    assert place(["fused"], THREE, leased(a=2, b=2), others) == ("c",)
    with pytest.raises(Full):
        place(["fused"], THREE, full, Asked(spares=frozenset("b"), taken=frozenset("c")))
