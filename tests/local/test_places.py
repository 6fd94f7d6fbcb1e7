"""Who fills a place in a service, when the next one comes, and who is given up: in virtual time."""

from __future__ import annotations

import pytest
from rearview.local.places import LAST_DELAY_S, SILENT_AT_START_S, SILENT_S, STEADY_S, Place, State
from rearview.local.words import Card, Starting

pytestmark = pytest.mark.unit


def up(now: float = 0.0) -> Place:
    """A place whose replica is ready."""
    place = Place("fused", 0)
    place.filled("fused#0", now)
    place.heard(Card({"sessions": ["a"]}, healthy=True), now)
    return place


def test_a_new_place_is_due_at_once_and_is_up_when_its_process_says_who_it_is() -> None:
    place = Place("fused", 0)
    assert place.is_due(0.0)
    place.filled("fused#0", 0.0)
    assert (place.state, place.is_due(100.0)) == (State.STARTING, False)
    place.heard(Starting("measuring"), 1.0)
    assert place.state is State.STARTING
    place.heard(Card({"sessions": []}, healthy=True), 2.0)
    assert place.state is State.UP


def test_whoever_was_ready_is_replaced_at_once_and_its_card_is_void() -> None:
    place = up()
    place.ended(1.0)
    assert (place.state, place.card, place.id) == (State.DOWN, {}, "fused#0")
    assert place.is_due(1.0)


def test_starts_that_come_to_nothing_are_tried_less_and_less_often() -> None:
    place, now, waits = Place("fused", 0), 0.0, []
    for number in range(12):
        place.filled(f"fused#{number}", now)
        place.ended(now)
        due = now
        while not place.is_due(due):
            due += 0.25
        waits.append(due - now)
        now = due
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits[-1] == LAST_DELAY_S


def test_one_that_is_ready_and_dies_again_and_again_is_tried_less_often_too() -> None:
    place = up()
    place.ended(0.1)
    assert place.is_due(0.1)
    place.filled("fused#1", 0.1)
    place.heard(Card({}, healthy=True), 0.2)
    place.ended(0.3)
    assert not place.is_due(0.3)


def test_what_was_steady_has_no_failures_to_its_name() -> None:
    place = up()
    for number in range(5):
        place.ended(0.0)
        place.filled(f"fused#{number}", 0.0)
    place.heard(Card({}, healthy=True), 0.0)
    place.ended(STEADY_S)
    assert place.is_due(STEADY_S)


def test_who_is_silent_is_given_up_sooner_when_it_was_ready() -> None:
    place = up()
    assert not place.fails(SILENT_S)
    assert place.fails(SILENT_S + 0.1)
    place.ended(10.0)
    assert not place.fails(1000.0), "there is nobody"
    place.filled("fused#1", 10.0)
    assert not place.fails(10.0 + SILENT_AT_START_S)
    assert place.fails(10.1 + SILENT_AT_START_S)


def test_who_says_that_it_is_not_healthy_is_given_up_and_the_next_one_is_not() -> None:
    place = up()
    place.heard(Card({}, healthy=False), 1.0)
    assert place.fails(1.0)
    place.ended(1.0)
    place.filled("fused#1", 1.0)
    assert not place.fails(1.0)


def test_nobody_is_blamed_for_what_was_not_listened_to() -> None:
    place = up()
    place.excuse(30.0)
    assert not place.fails(30.0 + SILENT_S)
    assert place.is_fresh(2.0, 31.0)


def test_only_who_is_ready_and_was_heard_of_late_is_fresh() -> None:
    place = up()
    assert place.is_fresh(2.0, 2.0)
    assert not place.is_fresh(2.0, 2.1)
    place.ended(2.0)
    assert not place.is_fresh(2.0, 2.0)
