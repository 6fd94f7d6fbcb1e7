"""Costs as they were measured, and one replica row by row in virtual time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rearview.contract.chain import OperatorKind
from rearview.engine.engine import Order
from rearview.errors import ConfigError
from rearview.planning.costs import H200, DeviceCost, read_costs
from rearview.planning.curves import Curve, Point, fit
from rearview.planning.rows import Stint, cost_table, play
from rearview.planning.streams import Streams

pytestmark = pytest.mark.unit

FLAT = DeviceCost("flat", 512 * 512, {1: 0.002, 2: 0.002}, {1: 0.006, 2: 0.007})
"""t(rows) = 5 + rows ms for a step."""
ALONE = Streams(jitter_s=0.0)


def test_the_table_that_is_built_in_is_the_one_that_was_measured(root: Path) -> None:
    measured = read_costs(root / "loadtest/results/engine_h200.json")
    assert measured.name == H200.name
    assert measured.pixels == H200.pixels
    for ours, theirs in ((H200.once_s, measured.once_s), (H200.step_s, measured.step_s)):
        assert ours == pytest.approx(theirs, abs=1e-6)
    # What was measured comes out again: 16 frames of four steps, and of one.
    assert 16 / (measured.once_s[16] + 4 * measured.step_s[16]) == pytest.approx(96.19, abs=0.01)
    assert 16 / (measured.once_s[16] + measured.step_s[16]) == pytest.approx(261.1, abs=0.1)


def test_a_table_may_be_one_that_a_replica_tells(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    path.write_text(json.dumps(H200.frame(2).described()))
    told = read_costs(path)
    assert Streams().share(told) == pytest.approx(Streams().share(H200))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[]", "is a JSON object"),
        ('{"pixels": 4}', "has no costs"),
        ('{"detail": {"rows": []}}', "has no costs"),
        ('{"pixels": 4, "once_s": 1, "step_s": {"1": "x"}}', "has no costs"),
        ('{"pixels": 4, "once_s": 1, "step_s": {"1": -1}}', "seconds above 0"),
        ('{"pixels": 0, "once_s": 1, "step_s": 1}', "pixels and rows must be at least 1"),
        ('{"pixels": 4, "once_s": {}, "step_s": 1}', "seconds above 0"),
    ],
)
def test_a_wrong_table_is_refused_in_a_sentence(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "costs.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_costs(path)


def test_one_stream_takes_its_forwards_and_nothing_else() -> None:
    outcome = play([Stint("s", 1.0, 3.0)], FLAT, ALONE)
    assert (outcome.frames, outcome.pictures, outcome.in_time) == (30, 30, 30)
    assert outcome.rows == 30 * 4
    assert outcome.busy_s == pytest.approx(30 * (0.001 + 2 * 0.006 + 0.001))
    assert outcome.play_ratio == 1.0
    # 29 intervals; the first picture begins the first one.
    assert outcome.played_s == pytest.approx(29 / 15)


def test_a_picture_that_is_later_than_the_slo_does_not_count() -> None:
    exact = Streams(jitter_s=0.0, slo_s=0.0141)
    tight = Streams(jitter_s=0.0, slo_s=0.0139)
    assert play([Stint("s", 0.0, 2.0)], FLAT, exact).attainment == 1.0
    assert play([Stint("s", 0.0, 2.0)], FLAT, tight).attainment == 0.0


def test_a_larger_picture_takes_longer_by_its_pixels() -> None:
    table = cost_table(FLAT, Streams(width=1024, height=512))
    assert table.seconds(OperatorKind.DENOISE, 2) == pytest.approx(0.014)


def test_streams_that_are_too_many_lose_frames_and_every_frame_is_counted_once() -> None:
    stints = [Stint(f"s{n}", n / 200, 4.0) for n in range(14)]
    outcome = play(stints, H200, Streams())
    assert outcome.frames == 14 * 60
    assert outcome.pictures < outcome.frames
    assert outcome.attainment < 0.2
    assert outcome.play_ratio < 0.9


def test_a_session_may_come_back_to_a_replica_that_it_left() -> None:
    outcome = play([Stint("s", 0.0, 1.0), Stint("s", 2.0, 3.0)], FLAT, ALONE)
    assert (outcome.frames, outcome.pictures) == (30, 30)


def test_stream_batch_waits_for_the_next_frame() -> None:
    """A frame leaves one interval later than back to back: 67 ms at 15 FPS and two steps."""
    tight = Streams(jitter_s=0.0, slo_s=0.06)
    stints = [Stint("s", 0.0, 2.0)]
    assert play(stints, FLAT, tight).attainment == 1.0
    assert play(stints, FLAT, tight, Order.STREAM_BATCH).attainment < 0.1


def test_a_curve_falls_where_a_replica_is_full() -> None:
    curve = fit(H200, Streams(), seconds=3.0, rounds=1, most=12)
    assert [point.streams for point in curve.points] == list(range(1, 13))
    assert curve.most(0.99, 0.99) in (9, 10)
    assert curve.at(12).attainment < 0.5
    assert curve.at(40) == curve.at(12)
    # The device is never idle long before it is full: forwards are then not full.
    assert curve.at(7).busy > 0.95 > 0.7 > curve.at(7).load


def test_the_most_is_before_the_first_that_fails() -> None:
    points = [Point(1, 0.1, 1.0, 1.0, 0.2), Point(2, 0.2, 0.9, 1.0, 0.4), Point(3, 0.3, 1.0, 1.0, 0.5)]
    assert Curve(points).most(0.99, 0.995) == 1
    assert Curve(points[1:]).most(0.99, 0.995) == 0
