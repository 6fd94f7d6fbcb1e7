"""What an ingress does about its leases, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.lease import Lease, Load
from rearview.control.leases import (
    Action,
    EndSession,
    Event,
    Forgotten,
    Granted,
    Holding,
    Release,
    Released,
    Renew,
    Taken,
    Tick,
    Unanswered,
    after,
    as_charged,
    charged,
    held,
)
from rearview.errors import Reason

pytestmark = pytest.mark.unit

LEASE_S = 15.0
LEASE = Lease("s", "t", ("a", "b"), "i1", 7, 115.0, 100.0)


def renewing() -> Holding:
    """A lease whose renewal has no answer yet."""
    holding, action = after(held(LEASE, LEASE_S, now=0.0), Tick(), 5.0)
    assert action == Renew(LEASE)
    return holding


TAKEN = Taken(7, "the session was taken over")


def test_a_lease_is_renewed_three_times_before_it_could_expire() -> None:
    holding, renewals, now = held(LEASE, LEASE_S, now=0.0), [], 0.0
    while now < LEASE_S:
        now += 0.25
        holding, action = after(holding, Tick(), now)
        if action is not None:
            renewals.append(now)
            holding, _ = after(holding, Granted(LEASE), now)
    assert renewals == [5.0, 10.0, 15.0]


def test_nothing_is_asked_twice_at_a_time() -> None:
    holding, action = after(renewing(), Tick(), 1000.0)
    assert (holding, action) == (renewing(), None)


def test_a_renewed_lease_is_the_one_that_is_renewed_next() -> None:
    moved = replace(LEASE, expiry_s=120.0)
    holding, action = after(renewing(), Granted(moved), 5.5)
    assert action is None
    assert after(holding, Tick(), 10.5)[1] == Renew(moved)


def test_a_directory_that_does_not_answer_is_asked_again_soon_and_ends_nothing() -> None:
    holding, now = renewing(), 5.0
    for _ in range(100):
        holding, action = after(holding, Unanswered(), now)
        assert action is None
        assert after(holding, Tick(), now + 0.9)[1] is None
        now += 1.0
        holding, action = after(holding, Tick(), now)
        assert action == Renew(LEASE)
    assert after(holding, Granted(LEASE), now)[0].due_s == now + 5.0


def test_a_directory_that_came_back_empty_is_told_at_once() -> None:
    holding, action = after(held(LEASE, LEASE_S, now=0.0), Forgotten(), 1.0)
    assert action is None
    assert after(holding, Tick(), 1.0)[1] == Renew(LEASE)


def test_a_lease_that_somebody_else_holds_ends_the_session_and_releases_nothing() -> None:
    holding, action = after(renewing(), TAKEN, 5.0)
    assert isinstance(action, EndSession)
    assert (action.session_id, action.error.reason) == ("s", Reason.TAKEN_OVER)
    assert action.error.message == "the session was taken over"
    assert holding.is_over
    assert after(holding, Released(), 6.0)[1] is None


def test_word_of_a_lease_that_has_been_moved_since_changes_nothing() -> None:
    moved = replace(LEASE, epoch=8, lane=("c", "d"))
    holding = replace(renewing(), lease=moved)
    for late in (Granted(LEASE), TAKEN):
        after_it, action = after(holding, late, 6.0)
        assert action is None
        assert after(after_it, Tick(), 100.0)[1] == Renew(moved)


def test_an_ended_session_releases_its_lease_once() -> None:
    holding, action = after(held(LEASE, LEASE_S, now=0.0), Released(), 1.0)
    assert action == Release(LEASE)
    assert holding.is_over
    assert after(holding, Released(), 1.0)[1] is None
    assert after(holding, Tick(), 1000.0)[1] is None


def test_a_lease_that_is_granted_after_the_end_goes_back() -> None:
    holding, action = after(renewing(), Released(), 5.0)
    assert action == Release(LEASE)
    assert not holding.is_over, "an answer is still to come"
    again = replace(LEASE, expiry_s=120.0)
    holding, action = after(holding, Granted(again), 5.0)
    assert action == Release(again)
    assert holding.is_over


@pytest.mark.parametrize("event", [TAKEN, Unanswered()], ids=["taken", "unanswered"])
def test_no_answer_after_the_end_asks_for_more(event: Event) -> None:
    holding, _ = after(renewing(), Released(), 5.0)
    holding, action = after(holding, event, 5.0)
    assert action is None
    assert holding.is_over


@dataclass
class World:
    """One session, and a directory that may be empty, silent or given to another ingress."""

    now: float = 0.0
    epoch: int = 7
    """Highest that was ever granted."""
    stored: Lease | None = LEASE
    """What the directory holds: it is ours while `ingress` is."""
    over: int = 0
    """The epoch of what was released last."""
    reachable: bool = True
    missed: bool = False
    """Whether a release went to a directory that was away: such a lease expires by itself."""
    ended: int = 0
    """How often the session was told that it is another's."""
    closed: bool = False
    holding: Holding = field(default_factory=lambda: held(LEASE, LEASE_S, now=0.0))
    asked: Action | None = None

    def happen(self, event: Event) -> None:
        self.holding, action = after(self.holding, event, self.now)
        match action:
            case Renew():
                self.asked = action
            case Release(lease):
                assert self.closed, "a live session's lease was released"
                self.release(lease)
            case EndSession():
                assert not self.closed
                self.ended += 1
                self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.holding, action = after(self.holding, Released(), self.now)
            if isinstance(action, Release):
                self.release(action.lease)

    def release(self, lease: Lease) -> None:
        if not self.reachable:
            self.missed = True
        elif self.stored is not None and self.stored.epoch == lease.epoch:
            self.stored, self.over = None, lease.epoch

    def answer(self) -> None:
        """The directory acts on what it was asked, unless it is away."""
        asked, self.asked = self.asked, None
        if asked is None:
            return
        if not self.reachable:
            self.happen(Unanswered())
        elif isinstance(asked, Renew):
            self._renew(asked.lease)

    def _renew(self, lease: Lease) -> None:
        newest = self.over if self.stored is None else self.stored.epoch - 1
        if lease.epoch <= newest:
            self.happen(Taken(lease.epoch, "the session was taken over"))
        else:
            self.stored = lease
            self.happen(Granted(lease))

    def lose(self) -> None:
        """The directory comes back empty."""
        self.stored, self.over = None, 0
        self.happen(Forgotten())

    def take_over(self) -> None:
        """Another ingress gets the session."""
        self.epoch += 1
        self.stored = replace(LEASE, ingress="i2", epoch=self.epoch)

    def wait(self) -> None:
        self.now += 2.0
        if self.asked is None:
            self.happen(Tick())

    def switch(self) -> None:
        self.reachable = not self.reachable


MOVES = ("wait", "answer", "lose", "take_over", "switch", "close")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(MOVES + ("wait", "answer") * 3), max_size=60))
def test_whatever_happens_a_session_ends_only_when_another_has_it_and_leaves_no_lease(
    moves: list[str],
) -> None:
    world = World()
    for move in moves:
        getattr(world, move)()
    assert world.ended <= 1
    if world.ended:
        assert world.epoch > LEASE.epoch, "nobody has taken the session, yet it was ended"
    world.reachable = True
    world.answer()
    world.answer()
    if not world.closed:
        # Left alone, a live session holds a lease within one interval, or another ingress does.
        for _ in range(3):
            world.wait()
        world.answer()
        world.answer()
        assert world.stored is not None
        is_ours = world.stored.ingress == LEASE.ingress
        assert is_ours != world.closed
        if is_ours:
            assert world.holding.lease.epoch == world.stored.epoch
            world.close()
    assert world.holding.is_over
    if not world.missed:
        assert world.stored is None or world.stored.ingress != LEASE.ingress, "a lease without a session"


def test_what_was_charged_stays_though_an_older_answer_says_less() -> None:
    more = Load(30.0, 1e6)
    holding = charged(renewing(), more)
    holding, _ = after(holding, Granted(replace(LEASE, expiry_s=120.0)), 5.5)
    assert after(holding, Tick(), 10.5)[1] == Renew(replace(LEASE, expiry_s=120.0, load=more))
    moved = replace(LEASE, epoch=8)
    assert as_charged(moved, holding) == replace(moved, load=more)
    assert as_charged(moved, None) == moved
