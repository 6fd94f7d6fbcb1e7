"""How many replicas a span should have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.control.autoscaling import desired_replicas

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
