"""The comparison of policies, on a small fleet and a curve by hand."""

from __future__ import annotations

import io

import pytest
from rearview.planning.curves import Curve, Point
from rich.console import Console

from loadtest.simulate import BATCH, OURS, PEAK_SHARES, SHARE, days, figures, placements_per_s

pytestmark = pytest.mark.unit

CURVE = Curve([Point(n, n * SHARE, *((1.0, 1.0) if n < 11 else (0.2, 0.9)), 1.0) for n in range(1, 14)])


def test_every_policy_meets_every_trace_and_is_counted_alike() -> None:
    found = days(CURVE, CURVE, 60, 12, 1.0, Console(file=io.StringIO()))
    assert {day.trace for day in found} == set(PEAK_SHARES)
    for name in PEAK_SHARES:
        of_trace = {day.policy: day.result for day in found if day.trace == name}
        assert len(of_trace) == 4
        assert len({result.asked for result in of_trace.values()}) == 1
        assert of_trace[BATCH].moves == 0 <= of_trace[OURS].moves
        assert all(0 < result.gpu_hours <= 12.0 for result in of_trace.values())
    shown = figures([], found, (1.0, 1.0), 60, 12, 1.0)
    assert sum("fewer GPU hours" in each.what for each in shown) == len(PEAK_SHARES)


def test_the_order_that_is_kept_is_faster_than_the_plain_one() -> None:
    plain, kept = placements_per_s(replicas=300, calls=10)
    assert kept > 3 * plain
