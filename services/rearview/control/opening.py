"""How a session comes to a lane: choose, take a lease, open; and again where that fails.

`begin()` and `after(opening, event)` give what is known and the one action that follows. A shell performs it
and tells what came of it (`ingress/placing.py`). However it ends, nothing is held but by a session that was
admitted: a lane is closed and a lease released as soon as the opening fails, is given up or meets a drain.

    Choose ──> Acquire ──> OpenLane ──> Admit
       ^          └────────────┴── refused: (Undo) ──> (Refresh) ──> Choose, PLACEMENT_TRIES in all
       └─ then Evict, once: a session of the same tenant that nobody feeds makes room ──> Acquire its lane
                                                                                      └──> ... ──> Refuse
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias, assert_never

from rearview.contract.lease import Lease
from rearview.control.placement import Full
from rearview.errors import Reason, Refused

__all__ = [
    "PLACEMENT_TRIES",
    "Acquire",
    "Action",
    "Admit",
    "Choose",
    "Chosen",
    "Done",
    "Drained",
    "Event",
    "Evict",
    "Evicted",
    "Failed",
    "GivenUp",
    "LaneOpened",
    "Leased",
    "OpenLane",
    "Opening",
    "Refresh",
    "Refuse",
    "Step",
    "Undo",
    "after",
    "begin",
]

PLACEMENT_TRIES = 3
"""A replica may have filled up, or gone, since it described itself."""
RETRY_AFTER_S = 2.0
_TRIED_AGAIN = (Reason.NO_CAPACITY, Reason.REPLICA_LOST, Reason.DRAINING)
_USED_UP = (Reason.TENANT_STREAMS_EXHAUSTED, Reason.TENANT_RATE_EXHAUSTED)


class Step(Enum):
    """What is being done."""

    CHOOSING = 1
    ACQUIRING = 2
    OPENING = 3
    UNDOING = 4
    REFRESHING = 5
    EVICTING = 6
    OVER = 7


@dataclass(frozen=True, slots=True)
class Opening:
    """One session on its way to a lane. A value: `after` makes another."""

    step: Step = Step.CHOOSING
    tries_left: int = PLACEMENT_TRIES
    lease: Lease | None = None
    """What is held."""
    error: Exception | None = None
    """Why the last try failed."""
    evicted: bool = False
    """Whether room was made: it is the last try then."""
    draining: bool = False
    """Whether it must end with nothing held."""

    @property
    def is_full(self) -> bool:
        """Whether the last try found no room."""
        return isinstance(self.error, Refused) and self.error.reason is Reason.NO_CAPACITY

    @property
    def is_full_for_certain(self) -> bool:
        """Whether nothing that replicas might say would change that."""
        return isinstance(self.error, Full) and self.error.is_certain

    @property
    def is_over_quota(self) -> bool:
        """Whether the tenant's own sessions took what this one needs."""
        return isinstance(self.error, Refused) and self.error.reason in _USED_UP

    @property
    def may_be_tried_again(self) -> bool:
        """Whether another lane may do where this one did not."""
        return isinstance(self.error, Refused) and self.error.reason in _TRIED_AGAIN


# What happens.


@dataclass(frozen=True, slots=True)
class Chosen:
    """There is a lane that seems to have room."""

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """The directory has granted a lease on it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LaneOpened:
    """Every replica of the lane has given a slot."""


@dataclass(frozen=True, slots=True)
class Failed:
    """What was to be done cannot be done."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Done:
    """Undone or refreshed, as far as that was possible."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """A session that nobody fed has ended. None: there was none. Empty: it held no slot."""

    replicas: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Drained:
    """The ingress takes no new sessions any more. May happen at any time."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The client has gone, and what was being done was cancelled. May happen at any time."""


Event: TypeAlias = Chosen | Leased | LaneOpened | Failed | Done | Evicted | Drained | GivenUp


# What is to be done.


@dataclass(frozen=True, slots=True)
class Choose:
    """Find a lane with room. Comes to Chosen or Failed."""


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take a lease on a lane. Comes to Leased or Failed. Cancelled, no lease is held: one
    that is granted all the same goes back.
    """

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenLane:
    """Take a slot on every replica of the lane. Comes to LaneOpened or Failed. Failed or cancelled, no slot
    is held.
    """

    lease: Lease


@dataclass(frozen=True, slots=True)
class Undo:
    """Close the lane, if it is open, and release the lease. Comes to Done."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask the replicas who they are, for a moment. Comes to Done."""


@dataclass(frozen=True, slots=True)
class Evict:
    """End a session of the same tenant that nobody feeds, and release its lease. Comes to Evicted."""

    for_slots: bool
    """Whether it must hold some. Else it is to make room in the tenant's quota."""


@dataclass(frozen=True, slots=True)
class Admit:
    """The session is placed: it holds the lease and the lane from now on."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Refuse:
    """There is no place; nothing is held."""

    error: Exception


Action: TypeAlias = Choose | Acquire | OpenLane | Undo | Refresh | Evict | Admit | Refuse
Outcome: TypeAlias = tuple[Opening, Action | None]


def begin() -> tuple[Opening, Action]:
    """A session is to be placed."""
    return Opening(), Choose()


def after(opening: Opening, event: Event) -> Outcome:
    """What is known after `event`, and what to do. None: go on with what is being done; after GivenUp, and
    after the Undo that may follow it, nothing is left to do.
    """
    match event:
        case Drained():
            return replace(opening, draining=True), None
        case GivenUp():
            return _give_up(opening)
        case Chosen(replicas):
            return _acquire(opening, replicas)
        case Leased(lease):
            return _leased(replace(opening, lease=lease))
        case LaneOpened():
            return _opened(opening)
        case Failed(error):
            return _failed(replace(opening, error=error))
        case Done():
            return _go_on(opening)
        case Evicted(replicas):
            # On the evicted lane's own links, where the close goes before the open: its slots are free.
            opening = replace(opening, evicted=True)
            if replicas is None:
                return _refuse(opening)
            return _acquire(opening, replicas) if replicas else _choose(opening)
        case _:
            assert_never(event)


def _choose(opening: Opening) -> Outcome:
    if opening.draining:
        return _refuse(opening)
    return replace(opening, step=Step.CHOOSING), Choose()


def _acquire(opening: Opening, replicas: tuple[str, ...]) -> Outcome:
    if opening.draining:
        return _refuse(opening)
    return replace(opening, step=Step.ACQUIRING), Acquire(replicas)


def _leased(opening: Opening) -> Outcome:
    if opening.draining:
        return _undo(opening)
    assert opening.lease is not None, "leased without a lease"
    return replace(opening, step=Step.OPENING), OpenLane(opening.lease)


def _opened(opening: Opening) -> Outcome:
    if opening.draining:
        return _undo(opening)
    assert opening.lease is not None, "a lane was opened without a lease"
    return replace(opening, step=Step.OVER), Admit(opening.lease)


def _failed(opening: Opening) -> Outcome:
    # A lane that was refused holds no slot any more, but its lease stands.
    return _go_on(opening) if opening.lease is None else _undo(opening)


def _undo(opening: Opening) -> Outcome:
    assert opening.lease is not None, "nothing to undo"
    return replace(opening, step=Step.UNDOING, lease=None), Undo(opening.lease)


def _go_on(opening: Opening) -> Outcome:
    """Nothing is held: try again, make room, or refuse. A directory that does not answer is not asked again:
    it was, inside the call.
    """
    if not opening.draining and opening.is_over_quota:
        return _evict(opening)
    if opening.draining or not opening.may_be_tried_again:
        return _refuse(opening)
    if opening.step is Step.REFRESHING:
        return replace(opening, step=Step.CHOOSING), Choose()
    opening = replace(opening, tries_left=opening.tries_left - 1)
    if opening.tries_left <= 0 or opening.is_full_for_certain:
        return _evict(opening)
    if opening.is_full:
        return replace(opening, step=Step.REFRESHING), Refresh()
    return replace(opening, step=Step.CHOOSING), Choose()


def _evict(opening: Opening) -> Outcome:
    if opening.evicted:
        return _refuse(opening)
    return replace(opening, step=Step.EVICTING), Evict(for_slots=not opening.is_over_quota)


def _give_up(opening: Opening) -> Outcome:
    if opening.lease is None or opening.step is Step.OVER:
        return replace(opening, step=Step.OVER), None
    return _undo(opening)


def _refuse(opening: Opening) -> Outcome:
    error: Exception | None = opening.error
    if opening.draining or error is None:
        error = Refused(Reason.DRAINING, "the service is draining", retry_after_s=RETRY_AFTER_S)
    return replace(opening, step=Step.OVER), Refuse(error)
