"""What is concluded from where a session stands on each span of a lane."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.control.adoption import LaneStanding, SpanStanding

pytestmark = pytest.mark.unit


def span(expected: int, *here: int, notes: tuple[tuple[int, str], ...] = ((-1, "note"),)) -> SpanStanding:
    """Places are ten more than ordinals, the client's numbers a hundred more."""
    last = max([expected - 1, *here])
    return SpanStanding(last + 10, last + 100, expected, {each: each + 10 for each in here}, notes)


def test_what_the_only_span_keeps_or_runs_will_come() -> None:
    lane = LaneStanding.of([span(7, 3, 4, 6)])
    assert (lane.next_ordinal, lane.place, lane.index, lane.is_whole) == (7, 16, 106, True)
    assert lane.coming == {3: 13, 4: 14, 6: 16}
    assert lane.owed(14) == {4: 14, 6: 16}


def test_what_the_last_span_had_sent_was_answered_by_its_former_owner() -> None:
    first, last = span(6, 4, 5), span(4, 2, 3)
    lane = LaneStanding.of([replace(first, went=frozenset({4})), replace(last, went=frozenset({2}))])
    assert list(lane.coming) == [2, 3, 4, 5]
    assert lane.answered == {2}


def test_a_frame_that_a_span_holds_back_has_its_ordinal() -> None:
    assert LaneStanding.of([span(5, 5, 6)]).next_ordinal == 7


def test_what_a_span_has_not_let_in_comes_from_the_one_before() -> None:
    lane = LaneStanding.of([span(8, 4, 5, 6, 7), span(6, 5), span(5, 3)])
    assert list(lane.coming) == [3, 5, 6, 7]
    assert lane.is_whole


def test_what_the_last_span_forgot_does_not_come_although_the_first_still_has_it() -> None:
    lane = LaneStanding.of([span(4, 0, 1, 2, 3), span(4, 2, 3)])
    assert list(lane.coming) == [2, 3]


@pytest.mark.parametrize(
    "spans",
    [
        [span(4, 3), span(2)],  # 2 is nowhere: the second span would wait for it for ever.
        [span(3, 5)],
        [span(6, 5), span(5, 3), span(4)],
    ],
)
def test_a_lane_that_lacks_an_ordinal_is_not_whole(spans: list[SpanStanding]) -> None:
    assert not LaneStanding.of(spans).is_whole


def test_a_note_that_is_ahead_of_the_frames_does_not_hold() -> None:
    notes = ((3, "before"), (6, "ahead"))
    assert LaneStanding.of([span(6, notes=notes)]).note == "before"
    assert LaneStanding.of([span(7, notes=notes)]).note == "ahead"
    assert LaneStanding.of([span(7, notes=())]).note is None


def test_a_standing_is_read_as_a_replica_tells_it() -> None:
    reply = {
        "place": 12,
        "index": 40,
        "expected": 3,
        "committed": {"0": 2},
        "settings": [0],
        "retained": [[11, 1]],
        "coming": [[12, 2]],
        "notes": [[-1, "note"]],
        "went": [1],
        "dropped": [[13, 41, 5]],
    }
    told = SpanStanding(12, 40, 3, {1: 11, 2: 12}, [(-1, "note")], frozenset({1}), {13: (41, 5)})
    assert SpanStanding.told(reply) == told
    assert LaneStanding.of([told]).dropped == {13: (41, 5)}
    assert SpanStanding.told({**reply, "went": []}).went == frozenset()
    del reply["went"]
    assert SpanStanding.told(reply) == told  # It does not say, so all of them.
    del reply["dropped"]
    assert SpanStanding.told(reply).dropped == {}
    with pytest.raises(KeyError):
        SpanStanding.told({})


@given(st.lists(st.integers(0, 20), min_size=3, max_size=3), st.integers(0, 20))
def test_wherever_a_stream_of_frames_is_stopped_the_rest_of_it_comes(let_in: list[int], acked: int) -> None:
    """Each span has let in so many frames, and keeps what the next one has not let in."""
    expected = sorted(let_in, reverse=True)
    kept_from = [*expected[1:], min(acked, expected[-1])]
    spans = [span(n, *range(first, n)) for n, first in zip(expected, kept_from, strict=True)]
    lane = LaneStanding.of(spans)
    assert lane.is_whole
    assert list(lane.coming) == list(range(kept_from[-1], expected[0]))
    assert lane.next_ordinal == expected[0]
