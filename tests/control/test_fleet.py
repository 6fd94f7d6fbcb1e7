"""Which replicas a new session may go to, and which lanes wait for one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.control.fleet import Fleet, LaneId
from rearview.control.lane_events import (
    Dialled,
    Doubted,
    LaneWanted,
    Opened,
    Refuse,
    SlotTaken,
    Told,
)
from rearview.control.lanes import after
from rearview.control.placement import Replica, place
from rearview.errors import Reason, Refused

pytestmark = pytest.mark.unit

LANE = LaneId("s", 1)
FIRST, LAST = (Replica(name, name, f"to-{name}", "node", 2, 2) for name in ("first", "last"))
FLEET = Fleet(("first", "last"), replicas={each.replica_id: each for each in (FIRST, LAST)})
ASKED = (LaneWanted(LANE, ("first", "last")), Dialled(LANE, FIRST), Dialled(LANE, LAST))


def test_a_lane_waits_for_whom_it_has_asked_and_who_has_not_answered() -> None:
    fleet = FLEET
    assert fleet.awaiting(LAST.address) == []
    for event in ASKED:
        fleet, _ = after(fleet, event)
        assert fleet.awaiting(LAST.address) == [LANE]
    fleet, _ = after(fleet, SlotTaken(LANE, "last"))
    assert fleet.awaiting(LAST.address) == []
    assert fleet.awaiting(FIRST.address) == [LANE]


def test_a_lane_that_a_doubted_replica_has_answered_waits_for_the_others() -> None:
    fleet = FLEET
    for event in (*ASKED, SlotTaken(LANE, "last"), Doubted(LAST.address)):
        fleet, actions = after(fleet, event)
    assert actions == ()
    assert after(fleet, SlotTaken(LANE, "first"))[1] == (Opened(LANE),)


def test_a_replica_that_was_doubted_while_it_was_dialled_is_not_waited_for() -> None:
    fleet, _ = after(FLEET, ASKED[0])
    fleet, actions = after(fleet, Doubted(FIRST.address))
    assert isinstance(actions[-1], Refuse)
    assert actions[-1].error.reason is Reason.REPLICA_LOST
    with pytest.raises(Refused):
        place(fleet.spans, fleet.replicas.values(), {})


def test_what_a_replica_tells_counts_at_once_and_again_changes_nothing() -> None:
    told = replace(FIRST, free_slots=1)
    fleet, actions = after(FLEET, Told(told))
    assert (dict(fleet.replicas), actions) == ({"first": told, "last": LAST}, ())
    again, _ = after(fleet, Told(replace(told)))
    assert again is fleet
