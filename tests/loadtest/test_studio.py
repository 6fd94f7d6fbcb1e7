"""The studio's load: a picture of another wall, session or frame, and a lost frame, are counted."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from rearview.contract.watermark import Watermark
from rearview.studio.protocol import PictureOut

from loadtest.studio import figures
from loadtest.studio_page import Tally, WallPlan, content_of, percentile

pytestmark = pytest.mark.unit

MINE, OTHER = "a" * 32, "b" * 32
PLAN = WallPlan(3, 10.0, 100, True, (b"one", b"two"))


def judged(frame: int, content: bytes, session_id: str | None = None) -> Tally:
    tally, picture = Tally(sent=1), content
    if session_id is not None:
        picture = Watermark(session_id, frame, 0).behind(content)
    tally.judge(PLAN, MINE, PictureOut(0, frame, 0.0, 1.0, 1.0, picture))
    return tally


def test_the_walls_own_pictures_do_not_cross() -> None:
    for session_id in (MINE, None):
        tally = judged(7, content_of(PLAN, 7), session_id)
        assert (tally.pictures, tally.crossed, tally.lost) == (1, 0, 0)


@pytest.mark.parametrize(
    ("frame", "content", "session_id"),
    [
        (7, content_of(PLAN, 8), MINE),
        (7, content_of(WallPlan(4, 10.0, 100, True, PLAN.pictures), 7), MINE),
        (7, content_of(PLAN, 7), OTHER),
        (7, content_of(PLAN, 7) + b"x", None),
    ],
    ids=["another frame", "another wall", "another session", "other bytes"],
)
def test_a_planted_crossing_is_seen(frame: int, content: bytes, session_id: str | None) -> None:
    assert judged(frame, content, session_id).crossed == 1


def test_figures_judge_by_their_targets() -> None:
    good = Tally(sent=100, pictures=100, latencies_ms=[float(ms) for ms in range(1, 101)])
    found = {(each.what, each.target): each for each in figures(good, [good, good])}
    assert [each.met for each in found.values() if each.target is not None] == [False, True, True]
    bad = Tally(sent=100, pictures=97, crossed=1, dropped=Counter(late=1), latencies_ms=[50.0] * 97)
    judged_bad = [each for each in figures(bad, [good, bad]) if each.target is not None]
    assert [each.met for each in judged_bad] == [True, False, False]
    assert [each.value for each in judged_bad[1:]] == [1, 3]


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0] * 95 + [9.0] * 5, 0.95) == 1.0
    assert math.isnan(percentile([], 0.5))
