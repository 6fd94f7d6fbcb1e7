"""How a session comes to a lane: what is tried, in which order, and that nothing is held where it fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.lease import Lease
from rearview.control.opening import (
    Acquire,
    Action,
    Admit,
    Choose,
    Chosen,
    Done,
    Drained,
    Event,
    Evict,
    Evicted,
    Failed,
    GivenUp,
    LaneOpened,
    Leased,
    Opening,
    OpenLane,
    Refresh,
    Refuse,
    Undo,
    after,
    begin,
)
from rearview.control.placement import Full
from rearview.errors import Fault, Reason, Refused

pytestmark = pytest.mark.unit

LANE = ("a", "b")
FULL = Failed(Refused(Reason.NO_CAPACITY, "full"))
FULL_FOR_CERTAIN = Failed(Full("denoise", 2.0, by_load=False, is_certain=True))
LOST = Failed(Refused(Reason.REPLICA_LOST, "lost"))
TAKEN = Failed(Refused(Reason.TAKEN_OVER, "taken"))
SILENT = Failed(Refused(Reason.DIRECTORY_UNAVAILABLE, "the session directory does not answer"))
USED_UP = Failed(Refused(Reason.TENANT_STREAMS_EXHAUSTED, "the tenant has as many as it may"))


def lease(epoch: int = 1, lane: tuple[str, ...] = LANE) -> Lease:
    return Lease("s", "t", lane, "i1", epoch, 115.0, 100.0)


def play(*events: Event) -> list[Action | None]:
    """The first action, and what follows from each event."""
    opening, action = begin()
    actions: list[Action | None] = [action]
    for event in events:
        opening, following = after(opening, event)
        actions.append(following)
    return actions


def error_of(action: Action | None) -> Exception:
    assert isinstance(action, Refuse)
    return action.error


def reason_of(action: Action | None) -> Reason:
    error = error_of(action)
    assert isinstance(error, Refused)
    return error.reason


def test_a_session_is_chosen_a_lane_then_leased_then_opened_then_admitted() -> None:
    assert play(Chosen(LANE), Leased(lease()), LaneOpened()) == [
        Choose(),
        Acquire(LANE),
        OpenLane(lease()),
        Admit(lease()),
    ]


def test_a_lane_that_is_refused_gives_its_lease_back_before_the_next_is_chosen() -> None:
    actions = play(Chosen(LANE), Leased(lease()), LOST, Done())
    assert actions[3:] == [Undo(lease()), Choose()]


def test_without_room_the_replicas_are_asked_anew_before_the_next_try() -> None:
    assert play(FULL, Done())[1:] == [Refresh(), Choose()]
    assert play(Chosen(LANE), Leased(lease()), FULL, Done(), Done())[3:] == [
        Undo(lease()),
        Refresh(),
        Choose(),
    ]


def test_where_leases_alone_say_that_there_is_no_room_no_replica_is_asked() -> None:
    actions = play(FULL_FOR_CERTAIN, Evicted(None))
    assert actions[:2] == [Choose(), Evict(for_slots=True)]
    assert error_of(actions[-1]) is FULL_FOR_CERTAIN.error
    actions = play(FULL_FOR_CERTAIN, Evicted(("x", "y")), Leased(lease(2, ("x", "y"))), LaneOpened())
    assert actions[-1] == Admit(lease(2, ("x", "y")))


def test_the_third_failure_makes_room_and_the_evicted_lane_is_taken() -> None:
    actions = play(LOST, LOST, LOST, Evicted(("x", "y")), Leased(lease(2, ("x", "y"))), LaneOpened())
    assert actions[:4] == [Choose(), Choose(), Choose(), Evict(for_slots=True)]
    assert actions[4:] == [
        Acquire(("x", "y")),
        OpenLane(lease(2, ("x", "y"))),
        Admit(lease(2, ("x", "y"))),
    ]


def test_where_no_session_makes_room_the_last_refusal_stands() -> None:
    actions = play(LOST, FULL, Done(), FULL, Evicted(None))
    assert actions[-2] == Evict(for_slots=True)
    assert error_of(actions[-1]) is FULL.error


def test_room_is_made_once() -> None:
    actions = play(LOST, LOST, LOST, Evicted(LANE), Leased(lease()), FULL, Done())
    assert actions[-2] == Undo(lease())
    assert error_of(actions[-1]) is FULL.error


@pytest.mark.parametrize("error", [TAKEN.error, Fault(), KeyError("x")], ids=["taken", "fault", "bug"])
def test_what_another_lane_cannot_mend_is_refused_at_once_with_nothing_held(error: Exception) -> None:
    actions = play(Chosen(LANE), Leased(lease()), Failed(error), Done())
    assert actions[-2] == Undo(lease())
    assert error_of(actions[-1]) is error


def test_a_directory_that_is_away_is_asked_once_and_no_session_makes_room_for_it() -> None:
    assert play(SILENT) == [Choose(), Refuse(SILENT.error)]
    assert play(Chosen(LANE), SILENT) == [Choose(), Acquire(LANE), Refuse(SILENT.error)]


def test_a_quota_that_is_used_up_is_asked_once_and_a_session_of_the_tenant_makes_room() -> None:
    actions = play(Chosen(LANE), USED_UP, Evicted(("x", "y")), Leased(lease(2, ("x", "y"))), LaneOpened())
    assert actions[2:4] == [Evict(for_slots=False), Acquire(("x", "y"))]
    assert actions[-1] == Admit(lease(2, ("x", "y")))
    for made_room in (None, ("x", "y")):
        actions = play(Chosen(LANE), USED_UP, Evicted(made_room), *[USED_UP] * (made_room is not None))
        assert error_of(actions[-1]) is USED_UP.error


def test_where_the_session_that_made_room_held_no_slot_a_lane_is_chosen() -> None:
    actions = play(Chosen(LANE), USED_UP, Evicted(()), Chosen(LANE), Leased(lease()))
    assert actions[2:] == [Evict(for_slots=False), Choose(), Acquire(LANE), OpenLane(lease())]


@pytest.mark.parametrize("reason", [Reason.TENANT_STREAMS_EXHAUSTED, Reason.TENANT_RATE_EXHAUSTED])
def test_a_drain_ends_no_session_for_another(reason: Reason) -> None:
    actions = play(Chosen(LANE), Drained(), Failed(Refused(reason, "used up")))
    assert reason_of(actions[-1]) is Reason.DRAINING


@pytest.mark.parametrize("events", [(), (Chosen(LANE),), (LOST,)], ids=["choosing", "acquiring", "again"])
def test_a_drain_refuses_what_holds_nothing(events: tuple[Event, ...]) -> None:
    actions = play(*events, Drained(), FULL)
    assert actions[-2] is None
    assert reason_of(actions[-1]) is Reason.DRAINING


@pytest.mark.parametrize("late", [LaneOpened(), FULL], ids=["opened", "refused"])
def test_a_drain_undoes_a_lane_that_opens_meanwhile(late: Event) -> None:
    actions = play(Chosen(LANE), Leased(lease()), Drained(), late, Done())
    assert actions[-2] == Undo(lease())
    assert reason_of(actions[-1]) is Reason.DRAINING


def test_a_drain_gives_a_late_lease_back() -> None:
    actions = play(Chosen(LANE), Drained(), Leased(lease()), Done())
    assert actions[-2] == Undo(lease())
    assert reason_of(actions[-1]) is Reason.DRAINING


def test_a_client_that_goes_leaves_nothing_held() -> None:
    assert play(GivenUp())[-1] is None
    assert play(Chosen(LANE), GivenUp())[-1] is None
    assert play(Chosen(LANE), Leased(lease()), GivenUp())[-1] == Undo(lease())
    assert play(Chosen(LANE), Leased(lease()), FULL, GivenUp())[-1] is None, "it is being undone already"


@dataclass
class World:
    """A directory and lanes that answer as they are told; a session on its way through them."""

    opening: Opening = field(default_factory=Opening)
    action: Action | None = field(default_factory=Choose)
    epoch: int = 0
    leases: set[int] = field(default_factory=set)
    """Epochs of the leases that are held."""
    lanes: set[int] = field(default_factory=set)
    """Epochs of the lanes that are open."""
    done: Counter[str] = field(default_factory=Counter)
    drained: bool = False

    @property
    def is_over(self) -> bool:
        return self.action is None or isinstance(self.action, Admit | Refuse)

    def step(self, luck: int) -> None:
        """Perform the action; `luck` says how it goes."""
        event = self._outcome(luck)
        self.done[type(self.action).__name__] += 1
        self.opening, self.action = after(self.opening, event)
        assert len(self.leases) <= 1, "two leases at a time"
        assert self.lanes <= self.leases, "a lane without a lease"

    def _outcome(self, luck: int) -> Event:
        failures = (FULL, LOST, SILENT, TAKEN, Failed(KeyError("x")), FULL)
        match self.action:
            case Choose():
                return (*failures[:3], *[Chosen(LANE)] * 5)[luck]
            case Acquire():
                if luck < 3:
                    return (SILENT, TAKEN, USED_UP)[luck]
                self.epoch += 1
                self.leases.add(self.epoch)
                return Leased(lease(self.epoch))
            case OpenLane(held):
                assert held.epoch in self.leases, "a lane is opened without a lease"
                if luck < 6:
                    return (FULL, LOST, TAKEN, Failed(Fault()), Failed(KeyError("x")), LOST)[luck]
                self.lanes.add(held.epoch)
                return LaneOpened()
            case Undo(held):
                self.undo(held)
                return Done()
            case Evict():
                return Evicted((LANE, (), None)[luck % 3])
            case _:
                assert isinstance(self.action, Refresh)
                return Done()

    def undo(self, held: Lease) -> None:
        self.leases.remove(held.epoch)
        self.lanes.discard(held.epoch)

    def drain(self) -> None:
        self.drained = True
        self.opening, action = after(self.opening, Drained())
        assert action is None

    def give_up(self) -> None:
        """The client goes while the action is under way: the shell cancels it."""
        if isinstance(self.action, Undo):
            self.undo(self.action.lease)  # It goes on without anybody who waits for it.
        self.opening, self.action = after(self.opening, GivenUp())
        if isinstance(self.action, Undo):
            self.undo(self.action.lease)


lucks = st.lists(st.integers(0, 7), min_size=40, max_size=40)


@settings(deadline=None, derandomize=True)
@given(lucks, st.none() | st.integers(0, 12), st.none() | st.integers(0, 12))
def test_whatever_fails_nothing_is_held_but_by_an_admitted_session(
    lucks: list[int], drains_at: int | None, gives_up_at: int | None
) -> None:
    world = World()
    for turn, luck in enumerate(lucks):
        if world.is_over:
            break
        if turn == drains_at:
            world.drain()
        if turn == gives_up_at:
            world.give_up()
            assert not world.leases
            assert not world.lanes
            return
        world.step(luck)
    assert world.is_over, "an opening that never ends"
    if isinstance(world.action, Admit):
        assert not world.drained
        assert world.leases == world.lanes == {world.action.lease.epoch}
    else:
        assert isinstance(world.action, Refuse)
        assert not world.leases
        assert not world.lanes
        if world.drained:
            assert reason_of(world.action) is Reason.DRAINING
    assert world.done["Choose"] <= 4
    assert world.done["Evict"] <= 1
    assert world.done["Acquire"] <= 5
