"""What follows from what happens to replicas and lanes: no session without a lane, no slot left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.control.fleet import Fleet, LaneId, Phase
from rearview.control.lane_events import (
    Action,
    Described,
    Dial,
    DialFailed,
    Dialled,
    Doubted,
    Draining,
    EndSession,
    Event,
    FreeSlot,
    LaneLost,
    LaneTaken,
    LaneUnwanted,
    LaneWanted,
    LinkLost,
    Opened,
    Refuse,
    SlotRefused,
    SlotTaken,
    SlotUnanswered,
    Stopping,
    TakeSlot,
    Vacate,
)
from rearview.control.lanes import ADOPTION_S, after
from rearview.control.placement import Replica, place
from rearview.errors import Fault, Reason, Refused

pytestmark = pytest.mark.unit

SPANS = ("encode", "denoise", "decode")
LANE = LaneId("s", 1)


def replica(name: str, span: str, slots: int = 2) -> Replica:
    return Replica(name, span, f"to-{name}", "node", slots, slots)


E, U, D = REPLICAS = (replica("e", "encode"), replica("u", "denoise"), replica("d", "decode"))
FLEET = Fleet(SPANS, replicas={each.replica_id: each for each in REPLICAS})
IDS = ("e", "u", "d")
FREED = tuple(FreeSlot(LANE, each.address) for each in REPLICAS)


def play(fleet: Fleet, *events: Event) -> tuple[Fleet, tuple[Action, ...]]:
    """The fleet after the events, and what followed from the last one."""
    actions: tuple[Action, ...] = ()
    for event in events:
        fleet, actions = after(fleet, event)
    return fleet, actions


DIALLED = (LaneWanted(LANE, IDS), *(Dialled(LANE, each) for each in REPLICAS))
OPENED = (*DIALLED, *(SlotTaken(LANE, each) for each in IDS))


def refusal(reason: Reason) -> SlotRefused:
    return SlotRefused(LANE, "u", Refused(reason, "no"))


def error_of(action: Action) -> Reason:
    assert isinstance(action, Refuse | EndSession)
    assert action.lane == LANE
    return action.error.reason


def test_no_slot_is_asked_for_before_every_replica_is_linked() -> None:
    fleet, actions = play(FLEET, LaneWanted(LANE, IDS))
    assert actions == tuple(Dial(LANE, each) for each in REPLICAS)
    fleet, actions = play(fleet, Dialled(LANE, D), Dialled(LANE, E))
    assert actions == ()
    fleet, actions = play(fleet, Dialled(LANE, U))
    assert actions == (
        TakeSlot(LANE, E, U.address),
        TakeSlot(LANE, U, D.address),
        TakeSlot(LANE, D, None),
    )


def test_a_lane_is_open_when_every_replica_has_given_a_slot() -> None:
    fleet, actions = play(FLEET, *DIALLED, SlotTaken(LANE, "d"), SlotTaken(LANE, "e"))
    assert actions == ()
    fleet, actions = play(fleet, SlotTaken(LANE, "u"))
    assert actions == (Opened(LANE),)
    assert fleet.lanes[LANE].phase is Phase.OPEN


def test_an_answer_that_comes_late_changes_nothing_in_an_open_lane() -> None:
    for late in (Dialled(LANE, E), SlotTaken(LANE, "e"), refusal(Reason.NO_CAPACITY)):
        fleet, actions = play(FLEET, *OPENED, late)
        assert actions == ()
        assert fleet.lanes[LANE].phase is Phase.OPEN


def test_a_replica_that_nobody_knows_is_refused_at_once() -> None:
    fleet, actions = play(FLEET, LaneWanted(LANE, ("e", "x", "d")))
    assert [error_of(each) for each in actions] == [Reason.REPLICA_LOST]
    assert not fleet.lanes


def test_a_replica_that_cannot_be_dialled_is_not_chosen_again() -> None:
    fleet, actions = play(FLEET, LaneWanted(LANE, IDS), Dialled(LANE, E), DialFailed(LANE, U))
    assert [error_of(each) for each in actions] == [Reason.REPLICA_LOST]
    assert set(fleet.replicas) == {"e", "d"}
    with pytest.raises(Refused):
        place(fleet.spans, fleet.replicas.values(), {})


@pytest.mark.parametrize("reason", [Reason.NO_CAPACITY, Reason.TAKEN_OVER, Reason.DRAINING])
def test_one_refusal_frees_every_slot_and_keeps_its_reason(reason: Reason) -> None:
    fleet, actions = play(FLEET, *DIALLED, SlotTaken(LANE, "e"), refusal(reason))
    assert actions[:-1] == FREED
    assert error_of(actions[-1]) is reason
    assert ("u" in fleet.replicas) == (reason is not Reason.DRAINING)
    assert play(fleet, SlotTaken(LANE, "d"))[1] == (), "a late answer opens nothing"


def test_a_fault_of_a_replica_keeps_its_error_id() -> None:
    fault = Fault(metadata={"error_id": "x"})
    _, actions = play(FLEET, *DIALLED, SlotRefused(LANE, "u", fault))
    assert actions[-1] == Refuse(LANE, fault)


def test_a_replica_that_is_silent_is_given_up_and_told_all_the_same() -> None:
    fleet, actions = play(FLEET, *DIALLED, SlotUnanswered(LANE, "u"))
    assert actions[:-1] == FREED
    assert error_of(actions[-1]) is Reason.REPLICA_LOST
    assert "u" not in fleet.replicas


@pytest.mark.parametrize("event", [LaneLost(LANE), LinkLost(U.address)], ids=["told", "link"])
def test_an_open_lane_that_is_lost_frees_its_slots_and_ends_its_session_once(event: Event) -> None:
    fleet, actions = play(FLEET, *OPENED, event)
    assert actions[:-1] == FREED
    assert isinstance(actions[-1], EndSession)
    assert error_of(actions[-1]) is Reason.REPLICA_LOST
    assert actions[-1].error.retry_after_s is not None
    for again in (LaneLost(LANE), LinkLost(U.address), LaneUnwanted(LANE)):
        assert play(fleet, again)[1] == ()


@pytest.mark.parametrize("event", [LaneLost(LANE), LinkLost(U.address)], ids=["told", "link"])
def test_a_lane_that_is_lost_while_it_opens_is_refused(event: Event) -> None:
    _, actions = play(FLEET, *DIALLED, SlotTaken(LANE, "e"), event)
    assert isinstance(actions[-1], Refuse)
    assert error_of(actions[-1]) is Reason.REPLICA_LOST


def test_a_lane_that_another_owner_adopts_is_left_to_it_for_a_while() -> None:
    fleet, actions = play(FLEET, *OPENED, LaneTaken(LANE))
    assert actions[:-1] == tuple(FreeSlot(LANE, each.address, ADOPTION_S) for each in REPLICAS)
    assert isinstance(actions[-1], EndSession)
    assert error_of(actions[-1]) is Reason.TAKEN_OVER
    assert play(fleet, LaneUnwanted(LANE))[1] == ()
    assert play(fleet, LaneTaken(LANE))[1] == ()
    _, actions = play(FLEET, *DIALLED, LaneTaken(LANE))
    assert isinstance(actions[-1], Refuse)


def test_a_lost_link_ends_the_lanes_over_it_and_no_others() -> None:
    other = LaneId("other", 1)
    second = (replica("e2", "encode"), replica("u2", "denoise"), D)
    fleet, _ = play(FLEET, *OPENED, Described([*REPLICAS, *second[:2]]), LaneWanted(other, ("e2", "u2", "d")))
    fleet, _ = play(fleet, *(Dialled(other, each) for each in second))
    fleet, actions = play(fleet, LinkLost(U.address))
    assert [each.lane for each in actions if isinstance(each, EndSession)] == [LANE]
    assert (set(fleet.lanes), set(fleet.replicas)) == ({other}, {"e", "d", "e2", "u2"})


def test_a_replica_that_nobody_describes_can_still_be_lost() -> None:
    _, actions = play(FLEET, *OPENED, Described([E, D]), LinkLost(U.address))
    assert isinstance(actions[-1], EndSession)


def test_a_draining_replica_keeps_its_lanes_and_gets_no_new_ones() -> None:
    fleet, (action,) = play(FLEET, *OPENED, Draining(U.address))
    assert action == Vacate(LANE)
    assert fleet.lanes[LANE].phase is Phase.OPEN
    assert "u" not in fleet.replicas
    assert not fleet.serves(fleet.spans)


def test_nothing_new_waits_for_a_replica_that_is_doubted_and_open_lanes_go_on() -> None:
    other = LaneId("t", 1)
    waiting = (LaneWanted(other, IDS), *(Dialled(other, each) for each in REPLICAS), SlotTaken(other, "e"))
    fleet, actions = play(FLEET, *OPENED, *waiting, Doubted(U.address))
    freed = tuple(FreeSlot(other, each.address) for each in REPLICAS)
    assert actions[:-1] == freed
    assert isinstance(actions[-1], Refuse)
    assert actions[-1].error.reason is Reason.REPLICA_LOST
    assert fleet.lanes.keys() == {LANE}
    assert "u" not in fleet.replicas
    assert play(fleet, Described(REPLICAS))[0].replicas.keys() == set(IDS)


def test_a_lane_that_nobody_wants_any_more_gives_its_slots_back_in_every_phase() -> None:
    assert play(FLEET, *DIALLED[:2], LaneUnwanted(LANE))[1] == ()
    for asked in (DIALLED, (*DIALLED, SlotTaken(LANE, "e")), OPENED):
        fleet, actions = play(FLEET, *asked, LaneUnwanted(LANE))
        assert actions == FREED
        assert not fleet.lanes


def test_an_orderly_stop_frees_every_slot_and_refuses_what_is_on_its_way() -> None:
    opening = LaneId("late", 1)
    fleet, _ = play(FLEET, *OPENED, LaneWanted(opening, IDS))
    fleet, actions = play(fleet, Stopping())
    assert [each for each in actions if isinstance(each, FreeSlot)] == list(FREED)
    (refused,) = [each for each in actions if isinstance(each, Refuse)]
    assert (refused.lane, refused.error.reason) == (opening, Reason.DRAINING)
    assert not fleet.lanes
    assert not fleet.replicas


ADOPTING = (LaneWanted(LANE, IDS, adopts=True), *DIALLED[1:])


def test_a_session_is_adopted_from_its_last_span_to_its_first() -> None:
    fleet, actions = play(FLEET, *ADOPTING)
    assert actions == (TakeSlot(LANE, D, None, adopts=True),)
    fleet, actions = play(fleet, SlotTaken(LANE, "d"))
    assert actions == (TakeSlot(LANE, U, D.address, adopts=True),)
    fleet, actions = play(fleet, SlotTaken(LANE, "u"))
    assert actions == (TakeSlot(LANE, E, U.address, adopts=True),)
    fleet, actions = play(fleet, SlotTaken(LANE, "e"))
    assert actions == (Opened(LANE),)
    assert play(fleet, LaneUnwanted(LANE))[1] == FREED


def test_an_adoption_that_fails_keeps_what_it_adopted_no_longer_and_touches_nothing_else() -> None:
    fleet, actions = play(FLEET, *ADOPTING, SlotTaken(LANE, "d"), refusal(Reason.TAKEN_OVER))
    assert actions[:-1] == FREED[2:]
    assert error_of(actions[-1]) is Reason.TAKEN_OVER
    assert not fleet.lanes


@dataclass
class Peer:
    """A replica as it is, at the other end of a link."""

    about: Replica
    is_up: bool = True
    drains: bool = False
    held: set[LaneId] = field(default_factory=set)
    inbox: deque[TakeSlot | FreeSlot] = field(default_factory=deque)
    replies: deque[Event] = field(default_factory=deque)
    asked: set[LaneId] = field(default_factory=set)
    """Who still waits for an answer of this replica."""

    def read(self) -> None:
        """Take the next message, as `Stage` does."""
        message = self.inbox.popleft()
        if isinstance(message, FreeSlot):
            self.held.discard(message.lane)
        elif self.drains or len(self.held) >= self.about.slots:
            reason = Reason.DRAINING if self.drains else Reason.NO_CAPACITY
            refused = Refused(reason, "no")
            self.replies.append(SlotRefused(message.lane, self.about.replica_id, refused))
        else:
            self.held.add(message.lane)
            self.replies.append(SlotTaken(message.lane, self.about.replica_id))

    @property
    def description(self) -> Replica:
        free = 0 if self.drains else self.about.slots - len(self.held)
        about = self.about
        return Replica(about.replica_id, about.span, about.address, about.node, free, about.slots)


class World:
    """One ingress, six replicas with two slots each, and messages that take their time."""

    def __init__(self) -> None:
        names = [(f"{span}-{n}", span) for span in SPANS for n in range(2)]
        self.peers = {f"to-{name}": Peer(replica(name, span)) for name, span in names}
        self.fleet = Fleet(SPANS)
        self.linked: set[str] = set()
        self.dials: list[Dial] = []
        self.later: list[FreeSlot] = []
        self.waiting: set[LaneId] = set()
        """Sessions that wait for their lane."""
        self.sessions: set[LaneId] = set()
        self.count = 0
        self.describe(0)

    def happen(self, event: Event) -> None:
        self.fleet, actions = after(self.fleet, event)
        for action in actions:
            self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case Dial():
                self.dials.append(action)
            case TakeSlot(lane, about, _):
                self.peers[about.address].inbox.append(action)
                self.peers[about.address].asked.add(lane)
            case FreeSlot(_, address, after_s):
                if after_s:
                    self.later.append(action)
                elif address in self.linked:
                    self.peers[address].inbox.append(action)
            case Opened(lane):
                self.waiting.remove(lane)
                self.sessions.add(lane)
            case Refuse(lane, _):
                self.waiting.remove(lane)
            case EndSession(lane, _):
                self.sessions.remove(lane)

    # What may happen. `k` picks which.

    def want(self, k: int) -> None:
        try:
            replicas = place(self.fleet.spans, self.fleet.replicas.values(), {})
        except Refused:
            return
        self.count += 1
        lane = LaneId(f"s{self.count}", 1)
        self.waiting.add(lane)
        self.happen(LaneWanted(lane, replicas))

    def end(self, k: int) -> None:
        lanes = sorted(self.waiting | self.sessions, key=str)
        if lanes:
            lane = lanes[k % len(lanes)]
            self.waiting.discard(lane)
            self.sessions.discard(lane)
            self.happen(LaneUnwanted(lane))

    def dial(self, k: int) -> None:
        if not self.dials:
            return
        dial = self.dials.pop(k % len(self.dials))
        address = dial.replica.address
        if self.peers[address].is_up:
            self.linked.add(address)
            self.happen(Dialled(dial.lane, dial.replica))
        else:
            self.happen(DialFailed(dial.lane, dial.replica))

    def work(self, k: int) -> None:
        """Some of what is on its way arrives."""
        for turn in range(k + 2):
            self.dial(turn + k)
            self.read(turn)
            self.reply(turn)

    def read(self, k: int) -> None:
        full = [peer for peer in self.peers.values() if peer.inbox]
        if full:
            full[k % len(full)].read()

    def reply(self, k: int) -> None:
        full = [peer for peer in self.peers.values() if peer.replies]
        if not full:
            return
        peer = full[k % len(full)]
        event = peer.replies.popleft()
        if isinstance(event, SlotTaken | SlotRefused):
            if event.lane not in peer.asked:
                return  # It was waited for too long.
            peer.asked.discard(event.lane)
        self.happen(event)

    def silence(self, k: int) -> None:
        late = [(peer, lane) for peer in self.peers.values() for lane in sorted(peer.asked, key=str)]
        if late:
            peer, lane = late[k % len(late)]
            peer.asked.discard(lane)
            self.happen(SlotUnanswered(lane, peer.about.replica_id))

    def lose(self, k: int) -> None:
        """A link breaks: what was on it is gone, and so is, in time, what the replica held for its owner."""
        peer = self._peer(k)
        peer.is_up = bool(k % 2)
        peer.held.clear()
        peer.inbox.clear()
        peer.replies.clear()
        asked, address = sorted(peer.asked, key=str), peer.about.address
        peer.asked.clear()
        if address in self.linked:
            self.linked.discard(address)
            self.happen(LinkLost(address))
        for lane in asked:
            self.happen(SlotUnanswered(lane, peer.about.replica_id))

    def cut(self, k: int) -> None:
        """A replica has lost the next one, or, every third time, its lane to another owner."""
        peer = self._peer(k)
        if peer.held and peer.about.address in self.linked:
            lane = min(peer.held, key=str)
            peer.held.discard(lane)
            peer.replies.append(LaneLost(lane) if k % 3 else LaneTaken(lane))

    def drain(self, k: int) -> None:
        peer = self._peer(k)
        peer.drains = not peer.drains
        if peer.drains and peer.about.address in self.linked:
            peer.replies.append(Draining(peer.about.address))

    def doubt(self, k: int) -> None:
        """A replica is slow to answer: it may be dead, or not."""
        self.happen(Doubted(self._peer(k).about.address))

    def describe(self, k: int) -> None:
        for peer in self.peers.values():
            peer.is_up = peer.is_up or k % 3 != 1
        self.happen(Described([peer.description for peer in self.peers.values() if peer.is_up]))

    def _peer(self, k: int) -> Peer:
        return list(self.peers.values())[k % len(self.peers)]

    def check(self) -> None:
        lanes = self.fleet.lanes
        assert {lane for lane in lanes if lanes[lane].phase is Phase.OPEN} == self.sessions
        assert {lane for lane in lanes if lanes[lane].phase is not Phase.OPEN} == self.waiting
        for lane in self.sessions:
            for about in lanes[lane].replicas:
                peer = self.peers[about.address]
                assert about.address in self.linked, "an open lane without a link"
                told = {LaneLost(lane), LaneTaken(lane)} & set(peer.replies)
                assert lane in peer.held or told, "an open lane without a slot"

    def settle(self) -> None:
        """Until nothing is on its way, and time has passed."""
        while self.dials or self.later or any(peer.inbox or peer.replies for peer in self.peers.values()):
            self.dial(0)
            self.read(0)
            self.reply(0)
            if self.later and (late := self.later.pop()).address in self.linked:
                self.peers[late.address].inbox.append(late)


MOVES = ("want", "end", "dial", "read", "reply", "silence", "lose", "cut", "drain", "doubt", "describe")
OFTEN = (*("want", "work") * 3, *("dial", "read", "reply") * 2)
Move = tuple[str, int]
moves = st.lists(st.tuples(st.sampled_from(MOVES + OFTEN), st.integers(0, 11)), max_size=80)


def lived(moves: Sequence[Move]) -> World:
    world = World()
    for name, k in moves:
        getattr(world, name)(k)
        world.check()
    return world


@settings(deadline=None, derandomize=True)
@given(moves)
def test_whatever_happens_sessions_and_lanes_are_the_same_and_every_slot_is_freed(moves: list[Move]) -> None:
    world = lived(moves)
    while world.sessions or world.waiting:
        world.end(0)
        world.check()
    world.settle()
    assert [peer.held for peer in world.peers.values() if peer.held] == []
    assert not world.fleet.lanes


@settings(deadline=None, derandomize=True)
@given(moves)
def test_whatever_has_happened_a_stop_leaves_no_slot_behind(moves: list[Move]) -> None:
    world = lived(moves)
    world.happen(Stopping())
    assert not world.waiting
    assert not world.fleet.lanes
    world.settle()
    assert [peer.held for peer in world.peers.values() if peer.held] == []


@settings(deadline=None, derandomize=True)
@given(moves)
def test_whatever_has_happened_new_sessions_find_their_lanes_again(moves: list[Move]) -> None:
    world = lived(moves)
    while world.sessions or world.waiting:
        world.end(0)
    world.settle()
    for peer in world.peers.values():
        peer.drains = False
    for _ in range(4):
        world.describe(0)
        world.want(0)
        world.settle()
    assert len(world.sessions) == 4
    world.check()
