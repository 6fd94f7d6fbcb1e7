"""The control loop's benchmark, on a small service."""

from __future__ import annotations

import pytest

from loadtest.control_loop import PARTS, Size, figures, run
from loadtest.placement import placement

pytestmark = pytest.mark.integration


def test_every_part_of_a_small_service_is_measured_and_does_its_work() -> None:
    size = Size(replicas=3, sessions=30)
    costs = {cost.part: cost for cost in run(size, 1.0)}
    assert costs.keys() == PARTS.keys()
    assert all(cost.percent > 0 for cost in costs.values())
    assert costs["asking who is there"].asked_per_s < 2 * size.replicas, "the same are there"
    whole = figures(size, list(costs.values()))[-1]
    assert whole.target == 20.0


def test_lanes_are_chosen_for_a_while_and_counted() -> None:
    figure = placement(5, 0.05)
    assert figure.value > 0
    assert (figure.target, figure.at_most) == (10_000.0, False)
