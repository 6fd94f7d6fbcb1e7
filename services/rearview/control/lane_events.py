"""What happens to replicas and lanes, and what is to be done: the words of `control/lanes.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rearview.control.fleet import LaneId
from rearview.control.placement import Replica
from rearview.errors import RearviewError

__all__ = [
    "Action",
    "Described",
    "Dial",
    "DialFailed",
    "Dialled",
    "Doubted",
    "Draining",
    "EndSession",
    "Event",
    "FreeSlot",
    "LaneLost",
    "LaneTaken",
    "LaneUnwanted",
    "LaneWanted",
    "LinkLost",
    "Opened",
    "Refuse",
    "SlotRefused",
    "SlotTaken",
    "SlotUnanswered",
    "Stopping",
    "TakeSlot",
    "Told",
    "Vacate",
]


# What happens.
@dataclass(frozen=True, slots=True)
class Described:
    """All replicas there are, as they have described themselves."""

    replicas: Sequence[Replica]


@dataclass(frozen=True, slots=True)
class Told:
    """One replica as it is now: it says so itself."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class LaneWanted:
    """A session is to be opened on these replicas, one per span; or adopted, if they hold it already."""

    lane: LaneId
    replicas: tuple[str, ...]
    adopts: bool = False


@dataclass(frozen=True, slots=True)
class LaneUnwanted:
    """The session has ended, or its opening was given up."""

    lane: LaneId


@dataclass(frozen=True, slots=True)
class Dialled:
    """There is a link to the replica."""

    lane: LaneId
    replica: Replica


@dataclass(frozen=True, slots=True)
class DialFailed:
    """There is none, and none can be made."""

    lane: LaneId
    replica: Replica


@dataclass(frozen=True, slots=True)
class SlotTaken:
    """The replica has given a slot."""

    lane: LaneId
    replica_id: str


@dataclass(frozen=True, slots=True)
class SlotRefused:
    """The replica has none, or a fault."""

    lane: LaneId
    replica_id: str
    error: RearviewError


@dataclass(frozen=True, slots=True)
class SlotUnanswered:
    """The replica was asked for a slot and is silent, or its link is closed."""

    lane: LaneId
    replica_id: str


@dataclass(frozen=True, slots=True)
class LaneLost:
    """A replica says that the one behind it is gone, or the owner that the lane is of no use any more."""

    lane: LaneId


@dataclass(frozen=True, slots=True)
class LaneTaken:
    """A replica or the directory says that another owner has the session, under a newer epoch."""

    lane: LaneId
    closed: bool = False
    """Whether only to end it."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The link to that address has closed: the replica is gone for this ingress."""

    address: str


@dataclass(frozen=True, slots=True)
class Doubted:
    """The replica at that address does not seem to live."""

    address: str


@dataclass(frozen=True, slots=True)
class Draining:
    """The replica at that address takes no new sessions."""

    address: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The ingress stops: its links are about to end."""


Event: TypeAlias = (
    Described
    | Told
    | LaneWanted
    | LaneUnwanted
    | Dialled
    | DialFailed
    | SlotTaken
    | SlotRefused
    | SlotUnanswered
    | LaneLost
    | LaneTaken
    | LinkLost
    | Doubted
    | Draining
    | Stopping
)


# What is to be done.
@dataclass(frozen=True, slots=True)
class Dial:
    """Make a link, or find the one there is. Comes to Dialled or DialFailed."""

    lane: LaneId
    replica: Replica


@dataclass(frozen=True, slots=True)
class TakeSlot:
    """Ask a replica for a slot. Comes to SlotTaken, SlotRefused or SlotUnanswered."""

    lane: LaneId
    replica: Replica
    next_address: str | None
    """Where its frames go: the next replica's, or None for this ingress."""
    adopts: bool = False
    """Whether the replica holds the session, and is asked to obey this owner and epoch from now on."""


@dataclass(frozen=True, slots=True)
class FreeSlot:
    """Tell a replica to forget the session, in order with what it was told before."""

    lane: LaneId
    address: str
    after_s: float = 0.0
    """How much later. Meanwhile another owner may adopt the session, which fences this."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Tell who wanted the lane that it is open."""

    lane: LaneId


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell who wanted the lane that there is none."""

    lane: LaneId
    error: RearviewError


@dataclass(frozen=True, slots=True)
class EndSession:
    """Tell the session that its open lane is gone."""

    lane: LaneId
    error: RearviewError


@dataclass(frozen=True, slots=True)
class Vacate:
    """Tell the session that a replica of its open lane is about to go."""

    lane: LaneId


Action: TypeAlias = Dial | TakeSlot | FreeSlot | Opened | Refuse | EndSession | Vacate
