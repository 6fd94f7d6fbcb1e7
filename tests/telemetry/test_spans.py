"""The spans of a frame, drawn from what the ingress knows of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from rearview.contract.frame import Forward, Timing
from rearview.contract.traces import Caller, Entry, FrameTrace, Sampling, read_traceparent, trace_id_of
from rearview.telemetry.spans import Piece, pieces_of

pytestmark = pytest.mark.unit

WALL_S = 1_000_000.0
"""What the wall clock says at zero of the monotonic one."""
FORWARDS = (Forward("encode", 0.0, 0.01, 2), Forward("denoise-0", 0.02, 0.03, 3))


def trace(*off_s: float) -> FrameTrace:
    """A frame through two spans, whose machines' clocks are so many seconds ahead of the ingress's."""
    return FrameTrace(
        trace_id_of("a" * 32, 7), "a" * 32, "alpha", "pocket", 7, 8,
        received_s=10.0, taken_s=10.01, decoded_s=10.02, ordinal=5,
        entries=[Entry(10.03, 1, ("one#0", "two#0"))],
        back_s=10.2,
        timings=(
            Timing("one", 0.01, 0.04, 0.02, WALL_S + 10.04 + off_s[0], FORWARDS),
            Timing("two", 0.0, 0.05, 0.05, WALL_S + 10.12 + off_s[1], (Forward("decode", 0.0, 0.05, 1),)),
        ),
        outcome="translated", answered_s=10.21, sent_s=10.22,
    )  # fmt: skip


def of(pieces: list[Piece], *names: str) -> list[Piece]:
    return [piece for piece in pieces if piece.name in names]


def drawn(one: FrameTrace) -> list[Piece]:
    """Its pieces; what must hold of any is asserted."""
    pieces = list(pieces_of(one, WALL_S))
    for index, piece in enumerate(pieces):
        assert piece.start_s <= piece.end_s
        parts = [part for part in pieces if part.parent == index]
        for part in parts:
            assert piece.start_s - 1e-6 <= part.start_s <= part.end_s <= piece.end_s + 1e-6, (piece, part)
        for before, after in pairwise(parts):
            assert before.end_s <= after.start_s + 1e-6, (before, after)
    return pieces


def test_with_equal_clocks_spans_are_where_they_were() -> None:
    pieces = drawn(trace(0.0, 0.0))
    spans = of(pieces, "one", "two")
    assert [(piece.start_s, piece.end_s) for piece in spans] == [
        (pytest.approx(10.04), pytest.approx(10.09)),
        (pytest.approx(10.12), pytest.approx(10.17)),
    ]
    assert [round(piece.end_s - piece.start_s, 6) for piece in of(pieces, "link")] == [0.01, 0.03, 0.03]
    assert not any("rearview.clock.shift_s" in piece.attributes for piece in pieces)


@pytest.mark.parametrize(
    ("off_s", "starts_s", "shifted"),
    [
        ((0.005, -0.01), (10.045, 10.11), ()),  # What fits cannot be known to be off.
        ((3600.0, 0.0), (10.10, 10.15), ("one", "two")),  # The latest that leaves room for what follows.
        ((0.0, -3600.0), (10.04, 10.09), ("two",)),
        ((-3600.0, 3600.0), (10.03, 10.15), ("one", "two")),
    ],
)
def test_a_clock_that_is_off_changes_no_duration_and_no_order(
    off_s: tuple[float, float], starts_s: tuple[float, float], shifted: tuple[str, ...]
) -> None:
    pieces = drawn(trace(*off_s))
    spans = of(pieces, "one", "two")
    assert [piece.start_s for piece in spans] == [pytest.approx(each, abs=1e-6) for each in starts_s]
    assert [piece.end_s - piece.start_s for piece in spans] == [pytest.approx(0.05)] * 2
    told = {piece.name for piece in pieces if "rearview.clock.shift_s" in piece.attributes}
    assert told == set(shifted)
    for piece, off in zip(spans, off_s, strict=True):
        if piece.name in told and abs(off) > 1:
            assert piece.attributes["rearview.clock.shift_s"] == pytest.approx(-off, abs=0.2)


def test_operators_and_waiting_are_told_apart() -> None:
    pieces = drawn(trace(0.0, 0.0))
    span = pieces.index(of(pieces, "one")[0])
    parts = [piece for piece in pieces if piece.parent == span]
    assert [piece.name for piece in parts] == ["encode", "queue", "denoise"]
    assert parts[2].attributes == {"rearview.batch.rows": 3, "rearview.denoise.step": 0}


def test_a_frame_that_never_came_so_far_ends_where_it_was() -> None:
    came = replace(trace(0.0, 0.0), taken_s=None, decoded_s=None, entries=[], back_s=None, timings=())
    assert [piece.name for piece in drawn(replace(came, outcome="superseded"))] == ["frame", "wait", "answer"]
    lost = replace(trace(0.0, 0.0), back_s=None, timings=(), outcome="fault")
    pieces = drawn(lost)
    assert [piece.name for piece in pieces] == ["frame", "wait", "decode", "admit", "lane", "answer"]
    assert [piece.is_error for piece in pieces] == [True, False, False, False, False, False]


def test_a_lane_of_version_1_tells_no_arrivals() -> None:
    timings = tuple(Timing(each.span, each.queue_s, each.compute_s) for each in trace(0, 0).timings)
    pieces = drawn(replace(trace(0, 0), timings=timings))
    assert [piece.start_s for piece in of(pieces, "one", "two")] == [10.03, pytest.approx(10.08)]


CALLER = Caller(bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b7"), True)
PARENT = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "caller"),
    [
        (f"00-{PARENT}-01", CALLER),
        (f"00-{PARENT}-00", replace(CALLER, is_sampled=False)),
        (f"cc-{PARENT}-03-what-the-future-will-be", CALLER),
        (f"00-{PARENT}-01-more", None),
        (f"ff-{PARENT}-01", None),
        (f"00-{PARENT}", None),
        (f"00-{PARENT.upper()}-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", None),
        ("", None),
        (f"00-{PARENT}-01\n", None),
    ],
)
def test_a_traceparent_is_read_or_is_none(text: str, caller: Caller | None) -> None:
    assert read_traceparent(text) == caller


def test_a_share_is_that_which_opentelemetry_takes() -> None:
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    ids = [trace_id_of("b" * 32, place) for place in range(2000)]
    assert len(set(ids)) == 2000
    for ratio in (0.0, 0.01, 0.3, 1.0):
        taken = [each for each in ids if Sampling.takes(each, ratio)]
        theirs = TraceIdRatioBased(ratio)
        decisions = (theirs.should_sample(None, int.from_bytes(each), "frame").decision for each in ids)
        assert len(taken) == sum(each is Decision.RECORD_AND_SAMPLE for each in decisions)
        assert len(taken) == pytest.approx(2000 * ratio, abs=80)
