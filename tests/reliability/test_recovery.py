"""What became of the streams that a fault hurt, read off hand-written histories."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.reliability.history import Event, Fault, Run, What
from loadtest.reliability.plan import Plan
from loadtest.reliability.recovery import Came, recovered, recoveries

pytestmark = pytest.mark.unit

FAULT_S = 1.0


def stream(key: str, *events: tuple[What, float, int], **end: Any) -> list[Event]:
    """What a client wrote down; its session has the same name."""
    opened = Event(What.OPENED, key, 0.0, -1, {"session": key})
    last = [Event(What.ENDED, key, 9.0, -1, end)] if end else []
    return [opened, *(Event(what, key, time_s, index) for what, time_s, index in events), *last]


def came(*streams: list[Event], hurt: tuple[str, ...] = ("a",)) -> list[tuple[str, Came, float | None]]:
    events = sorted((each for one in streams for each in one), key=lambda event: event.time_s)
    run = Run(Plan(), events, [Fault("SIGKILL", "span-0#1", FAULT_S, None, hurt)])
    return [(each.stream, each.came, each.seconds) for each in recoveries(run)]


SENT, RESULT, DROPPED = What.SENT, What.RESULT, What.DROPPED


def test_a_stream_is_back_with_the_first_picture_of_a_frame_that_was_sent_after_the_fault() -> None:
    a = stream("a", (SENT, 0.9, 0), (SENT, 1.2, 1), (RESULT, 1.25, 0), (SENT, 1.3, 2), (RESULT, 1.5, 1))
    assert came(a) == [("a", Came.BACK, 0.5)]


def test_who_was_not_hurt_is_in_no_figure() -> None:
    a = stream("a", (SENT, 1.2, 1), (RESULT, 1.5, 1))
    b = stream("b", (SENT, 1.1, 1), (RESULT, 1.11, 1))
    assert came(a, b) == [("a", Came.BACK, 0.5)]
    assert came(a, b, hurt=("c",)) == []


def test_a_stream_without_a_picture_never_came_back_unless_its_end_has_a_reason() -> None:
    silent = stream("a", (SENT, 0.9, 0), (SENT, 1.2, 1))
    assert came(silent) == [("a", Came.NEVER, None)]
    assert came([*silent, *stream("a", (DROPPED, 1.4, 1))[1:]]) == [("a", Came.NEVER, None)]
    blocked = stream("a", (SENT, 0.9, 0))  # It has no credit, and waits for ever.
    assert came(blocked) == [("a", Came.NEVER, None)]
    told = stream("a", (SENT, 1.2, 1), status="UNAVAILABLE", reason="REPLICA_LOST")
    assert came(told) == [("a", Came.ENDED, None)]
    cut = stream("a", (SENT, 1.2, 1), status="UNAVAILABLE", reason=None)
    assert came(cut) == [("a", Came.NEVER, None)]


def test_who_has_nothing_to_send_or_leaves_asks_for_no_picture() -> None:
    assert came(stream("a", (SENT, 0.9, 0), (What.FINISHED, 0.95, -1))) == []
    assert came(stream("a", (SENT, 0.9, 0), (What.FINISHED, 1.1, -1), status="OK")) == []
    assert came(stream("a", (SENT, 1.2, 0), (What.LEFT, 1.3, -1))) == []


def test_every_fault_counts_by_itself() -> None:
    events = stream("a", (SENT, 1.1, 0), (RESULT, 1.2, 0), (SENT, 3.1, 1), (RESULT, 3.5, 1))
    faults = [Fault("SIGKILL", "one", 1.0, None, ("a",)), Fault("SIGKILL", "two", 3.0, None, ("a",))]
    found = recovered(recoveries(Run(Plan(), events, faults)))
    assert found == {"hurt": 2, "recovery_s": [0.2, 0.5], "never": [], "hurt_ended": 0}
