"""What the forward under way is expected to take."""

from __future__ import annotations

import pytest
from rearview.contract.frame import Frame
from rearview.contract.settings import Settings
from rearview.engine.course import Course
from rearview.engine.rows import FrameInFlight, Row
from rearview.engine.scheduler import CostTable
from rearview.engine.underway import NEW_SHAPE_S, Underway
from support.tiny import session, whole_chain

pytestmark = pytest.mark.unit

COST_S = 0.01


def rows(count: int) -> list[Row]:
    spec, operator = session("one", Settings("a", 0.4, 2)), whole_chain(2).operators[0]
    frame = FrameInFlight(spec, spec.settings, Frame("one", 0, {}), {}, Course(spec.settings, [operator]))
    return [Row((frame,), operator, "group", 0.0)] * count


def expected_s(underway: Underway, count: int) -> float | None:
    with underway.forward(rows(count)):
        running = underway.running
        assert running is not None
        return running.expected_s


def table(ran: tuple[int, ...]) -> CostTable:
    return CostTable({"group": {1: COST_S, 2: COST_S}}, ran={"group": ran} if ran else {})


def test_a_size_is_expected_to_cost_what_it_costs_once_it_has_run() -> None:
    underway = Underway(table(()))
    assert [expected_s(underway, count) for count in (1, 1, 2, 2)] == [None, COST_S, NEW_SHAPE_S, COST_S]
    assert underway.running is None


def test_what_calibration_ran_in_this_process_is_not_new() -> None:
    underway = Underway(table((1, 2)))
    assert [expected_s(underway, count) for count in (2, 1, 4, 4)] == [
        COST_S,
        COST_S,
        NEW_SHAPE_S,
        COST_S,
    ]


def test_a_forward_that_fails_leaves_its_size_new() -> None:
    underway = Underway(table((1,)))
    with pytest.raises(RuntimeError), underway.forward(rows(2)):
        raise RuntimeError("of the model")
    assert expected_s(underway, 2) == NEW_SHAPE_S


def test_of_a_group_that_nobody_has_measured_nothing_is_expected() -> None:
    underway = Underway(CostTable())
    assert [expected_s(underway, 1), expected_s(underway, 1)] == [None, None]
