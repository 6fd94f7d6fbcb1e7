"""How many replicas a span should have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.control.autoscaling import desired_replicas
from rearview.serve_options import ScaleBySessions

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("sessions", "current", "wanted"),
    [
        ([], 1, 1),
        ([0], 1, 0),
        ([4, 4], 2, 2),
        ([4, 5], 2, 3),
        ([40], 1, 10),
        ([1, 0, 0], 3, 1),
        ([1, 1, 1], 3, 1),
        ([0], 3, 2),
        ([4, 1], 3, 3),
    ],
    ids=[
        "none heard",
        "idle",
        "just full",
        "one more",
        "a crowd",
        "two idle",
        "their sessions fit on one",
        "two not heard",
        "one not heard",
    ],
)
def test_sessions_say_how_many_replicas_are_wanted(sessions: list[float], current: int, wanted: int) -> None:
    assert desired_replicas(sessions, current, 4.0, slots=8) == wanted


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 8), max_size=8), st.floats(0.5, 16.0), st.integers(0, 3), st.integers(0, 2))
def test_whichever_replica_goes_its_sessions_fit_on_those_that_stay(
    sessions: list[int], per_replica: float, unheard: int, spares: int
) -> None:
    current = len(sessions) + unheard
    wanted = desired_replicas(sessions, current, per_replica, slots=8, spares=spares)
    active = wanted - unheard - spares
    assert active >= 0
    assert active * 8 >= sum(sessions)
    assert active * per_replica >= sum(sessions)


def test_slots_that_no_replica_has_told_yet_hold_nothing_up() -> None:
    """With `slots: auto` each replica says how many it has."""
    assert desired_replicas([4, 5], 2, 16.0, slots=None) == 1
    assert desired_replicas([4, 5], 2, 16.0, slots=4.0) == 3


def test_with_slots_auto_the_policy_reads_what_replicas_tell() -> None:
    def context(slots: list[float]) -> SimpleNamespace:
        told = {"sessions": dict(enumerate([4.0, 5.0])), "slots": dict(enumerate(slots))}
        return SimpleNamespace(aggregated_metrics=told, current_num_replicas=2)

    auto = ScaleBySessions(16.0, None)
    assert auto(context([8.0, 4.0])) == (3, {}), "the least"
    assert auto(context([])) == auto(context([0.0, 0.0])) == (1, {})
    assert auto(SimpleNamespace(aggregated_metrics=None, current_num_replicas=1)) == (1, {})
    assert ScaleBySessions(16.0, 3)(context([8.0, 4.0])) == (3, {})
