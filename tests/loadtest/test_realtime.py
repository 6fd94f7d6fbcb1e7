"""The real-time run's own arithmetic, on a clock that sleeping moves: the figures of virtual time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rearview.engine.engine import Order

from loadtest import realtime
from loadtest.figures import ResultFile
from loadtest.realtime import CELLS, Cell, Outcome, figures, main, play

pytestmark = [pytest.mark.unit, pytest.mark.timeout(60)]


class Clock:
    """Seconds, moved by sleeping alone."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        # What is left between two floats must not stop time.
        self.now_s = max(self.now_s + seconds, math.nextafter(self.now_s, math.inf))


def run(cell: Cell, frames: int = 60) -> Outcome:
    clock = Clock()
    return play(cell, frames, clock, clock.sleep)


def test_one_stream_has_the_latency_of_its_order() -> None:
    back_to_back, stream_batch = run(Cell(1, Order.BACK_TO_BACK)), run(Cell(1, Order.STREAM_BATCH))
    assert back_to_back.percentile_ms(50) == pytest.approx(24.0, abs=0.01)
    assert stream_batch.percentile_ms(50) == pytest.approx(109.0, abs=0.01)
    assert back_to_back.missed == 0
    assert stream_batch.missed >= 57, "100 ms is less than three frame intervals and a forward"


@pytest.mark.parametrize("streams", [4, 5, 6])
def test_streams_that_fit_miss_nothing(streams: int) -> None:
    assert run(Cell(streams, Order.BACK_TO_BACK)).missed == 0


def test_of_too_many_streams_every_picture_is_in_time_and_every_frame_is_counted() -> None:
    outcome = run(Cell(8, Order.BACK_TO_BACK, max_in_flight=1))
    assert outcome.late == 0
    assert len(outcome.latencies_s) + outcome.driven_out == 8 * 60
    assert 0 < outcome.driven_out < 0.4 * outcome.frames


def test_late_pictures_and_frames_driven_out_are_both_missed() -> None:
    outcome = Outcome(10, [0.05, 0.1, 0.11], driven_out=7)
    assert (outcome.late, outcome.missed) == (1, 8)
    assert outcome.percentile_ms(50) == pytest.approx(100.0)
    assert math.isnan(Outcome(5, [], 5).percentile_ms(50))


def test_a_slow_device_misses_the_target_of_one_stream() -> None:
    fast, slow = Outcome(4, [0.024] * 4), Outcome(4, [0.031] * 4)
    assert figures([(CELLS[0], fast)])[0].met is True
    assert figures([(CELLS[0], slow)])[0].met is False
    assert figures([(CELLS[1], slow)])[0].met is False
    assert [figure.target for figure in figures([(CELLS[2], slow)])] == [None] * 3


def test_both_orders_are_measured_and_written_as_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "play", run)
    main(seconds=2.0, results=tmp_path)
    result = ResultFile.read(tmp_path / "realtime.json")
    assert {(cell["streams"], cell["order"]) for cell in result.detail["cells"]} == {
        (cell.streams, cell.order.value) for cell in CELLS
    }
    assert [figure.met for figure in result.figures if figure.target is not None] == [True, True]
