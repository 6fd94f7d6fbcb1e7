"""What an ingress does about the lease of a session that it feeds: renew, take again, let go.

`after(holding, event, now)` gives what is known after an event and the action that follows from it. A shell
asks the directory and tells its answers as further events (`ingress/leases.py`). Ownership rests on epochs:
an expiry ends nothing, and a directory that does not answer stops no session. Only word that somebody else
holds the session ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias, assert_never

from rearview.contract.lease import Lease
from rearview.errors import RearviewError, Reason, StreamEnded

__all__ = [
    "Acquire",
    "Action",
    "Asked",
    "EndSession",
    "Event",
    "Gone",
    "Granted",
    "Holding",
    "Release",
    "Released",
    "Renew",
    "Taken",
    "Tick",
    "Unanswered",
    "after",
    "held",
]

RENEWALS_PER_LEASE = 3
"""Two renewals may fail before a lease expires."""


class Asked(Enum):
    """What the directory was asked and has not answered."""

    NOTHING = 1
    RENEW = 2
    ACQUIRE = 3


@dataclass(frozen=True, slots=True)
class Holding:
    """A lease that is held. A value: `after` makes another."""

    lease: Lease
    """The last that was granted."""
    interval_s: float
    """Between two renewals."""
    due_s: float
    """When to renew; on the clock of `now`."""
    asked: Asked = Asked.NOTHING
    released: bool = False
    """The session has ended: whatever the directory still grants goes back."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.released and self.asked is Asked.NOTHING


def held(lease: Lease, lease_s: float, now: float) -> Holding:
    """A lease that was granted now. `lease_s`: how long one lasts."""
    interval_s = lease_s / RENEWALS_PER_LEASE
    return Holding(lease, interval_s, now + interval_s)


# What happens.


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The directory has renewed the lease, or given a new one."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Gone:
    """The directory knows no lease of the session: it came back empty."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else holds the session. `text` may be shown to its client."""

    text: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The directory did not answer; whether it has done what it was asked is not known."""


@dataclass(frozen=True, slots=True)
class Released:
    """The session has ended."""


Event: TypeAlias = Tick | Granted | Gone | Taken | Unanswered | Released


# What is to be done.


@dataclass(frozen=True, slots=True)
class Renew:
    """Ask for more time. Comes to Granted, Gone, Taken or Unanswered."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for a lease like the one that was lost. Comes to Granted, Taken or Unanswered."""

    lease: Lease
    min_epoch: int
    """The new epoch is higher: what was opened under the old one stays fenced."""


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease back. Nothing comes of it: without an answer it expires by itself."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class EndSession:
    """The session is another's now."""

    session_id: str
    error: RearviewError


Action: TypeAlias = Renew | Acquire | Release | EndSession
Outcome: TypeAlias = tuple[Holding, Action | None]


def after(holding: Holding, event: Event, now: float) -> Outcome:
    """What is known after `event`, and what to do. `now` only grows; any clock will do."""
    match event:
        case Tick():
            return _tick(holding, now)
        case Granted(lease):
            return _granted(holding, lease, now)
        case Gone():
            return _acquire_again(holding)
        case Taken(text):
            return _end(holding, text)
        case Unanswered():
            return _wait(holding, now), None
        case Released():
            return replace(holding, released=True), None if holding.released else Release(holding.lease)
        case _:
            assert_never(event)


def _tick(holding: Holding, now: float) -> Outcome:
    if holding.released or holding.asked is not Asked.NOTHING or now < holding.due_s:
        return holding, None
    return replace(holding, asked=Asked.RENEW), Renew(holding.lease)


def _granted(holding: Holding, lease: Lease, now: float) -> Outcome:
    granted = _wait(replace(holding, lease=lease), now)
    return granted, Release(lease) if holding.released else None


def _acquire_again(holding: Holding) -> Outcome:
    if holding.released:
        return replace(holding, asked=Asked.NOTHING), None
    lease = holding.lease
    return replace(holding, asked=Asked.ACQUIRE), Acquire(lease, min_epoch=lease.epoch)


def _end(holding: Holding, text: str) -> Outcome:
    ended = replace(holding, asked=Asked.NOTHING, released=True)
    if holding.released:
        return ended, None
    return ended, EndSession(holding.lease.session_id, StreamEnded(Reason.TAKEN_OVER, text))


def _wait(holding: Holding, now: float) -> Holding:
    """Until the next renewal, which asks again."""
    return replace(holding, asked=Asked.NOTHING, due_s=now + holding.interval_s)
