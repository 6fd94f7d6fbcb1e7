"""The continuous play ratio, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.ingress.playout import BUFFER_S, MAX_INTERVAL_S, Playout

pytestmark = pytest.mark.unit

INTERVAL_S = 0.1


def watched(latencies: list[float | None]) -> tuple[float, float]:
    """Frames every INTERVAL_S; None: a frame has no picture. Seconds played and stalled."""
    playout, played, stalled, answered_s = Playout(), 0.0, 0.0, 0.0
    for number, latency in enumerate(latencies):
        received_s = number * INTERVAL_S
        answered_s = max(answered_s, received_s + (latency or 0.0))
        each = playout.answered(received_s, answered_s, shows=latency is not None)
        played, stalled = played + each[0], stalled + each[1]
    return played, stalled


def test_a_steady_stream_plays_however_long_its_latency() -> None:
    assert watched([0.4] * 11) == pytest.approx((1.0, 0.0))


def test_jitter_within_the_buffer_is_not_seen() -> None:
    assert watched([0.2, 0.2 + BUFFER_S * 0.9, 0.2, 0.25, 0.2]) == pytest.approx((0.4, 0.0))


def test_a_late_picture_stalls_until_it_is_shown_and_the_rest_plays_on() -> None:
    late = BUFFER_S + 0.3
    played, stalled = watched([0.2, 0.2, 0.2 + late, 0.2 + late, 0.2 + late])
    assert (played, stalled) == pytest.approx((0.3, INTERVAL_S + 0.3 + BUFFER_S))


def test_a_frame_without_a_picture_stalls_for_its_interval() -> None:
    assert watched([0.2, 0.2, None, 0.2, 0.2]) == pytest.approx((0.3, 0.1))


def test_nothing_is_due_before_the_first_picture_nor_where_the_source_pauses() -> None:
    playout = Playout()
    assert playout.answered(0.0, 0.1, shows=False) == (0.0, 0.0)
    assert playout.answered(0.1, 0.2, shows=True) == (0.0, 0.0)
    assert playout.answered(0.2, 0.3, shows=True) == pytest.approx((0.1, 0.0))
    pause_s = 0.2 + MAX_INTERVAL_S + 0.5
    assert playout.answered(pause_s, pause_s + 0.1, shows=True) == (0.0, 0.0)
    assert playout.answered(pause_s + 0.1, pause_s + 0.2, shows=True) == pytest.approx((0.1, 0.0))


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 2.0)), min_size=2, max_size=40))
def test_time_is_played_or_stalled_and_none_is_lost(latencies: list[float | None]) -> None:
    """From the first picture on: no less than the frames took, more only by what was waited for."""
    played, stalled = watched(latencies)
    first = next((at for at, each in enumerate(latencies) if each is not None), len(latencies) - 1)
    assert played >= 0
    assert stalled >= 0
    assert played + stalled >= (len(latencies) - 1 - first) * INTERVAL_S - 1e-9
