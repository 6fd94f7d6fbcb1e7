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
        ([1, 1, 1], 3, 3),
        ([0], 3, 2),
    ],
    ids=[
        "none heard",
        "idle",
        "just full",
        "one more",
        "a crowd",
        "two idle",
        "all at work",
        "two not heard",
    ],
)
def test_sessions_say_how_many_replicas_are_wanted(sessions: list[float], current: int, wanted: int) -> None:
    assert desired_replicas(sessions, current, 4.0) == wanted


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 8), max_size=8), st.floats(0.5, 8.0))
def test_a_replica_that_holds_a_session_is_never_taken_away(sessions: list[int], per_replica: float) -> None:
    wanted = desired_replicas(sessions, len(sessions), per_replica)
    assert wanted >= sum(count > 0 for count in sessions)
    assert wanted * per_replica >= sum(sessions)
