"""What an ingress does about the lease of a session that it feeds: renew, let go.

`after(holding, event, now)` gives what is known after an event and the action that follows from it. A shell
asks the directory and tells its answers as further events (`ingress/leases.py`). Ownership rests on epochs:
an expiry ends nothing, and a directory that does not answer stops no session, nor does one that forgot: a
renewal tells it again. Only word that somebody else holds the session ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from rearview.contract.lease import Lease, Load
from rearview.errors import RearviewError, Reason, Refused, StreamEnded

__all__ = [
    "Action",
    "EndSession",
    "Event",
    "Forgotten",
    "Granted",
    "Holding",
    "Release",
    "Released",
    "Renew",
    "Taken",
    "Tick",
    "Unanswered",
    "after",
    "as_charged",
    "charged",
    "held",
    "is_taken",
    "not_renewed",
    "on_its_way",
]

RENEWALS_PER_LEASE = 3
"""Two renewals may fail before a lease expires."""
ON_ITS_WAY_S = 0.1
AGAIN_S = 1.0
"""After a renewal that was not answered. A directory that is known to be away costs nothing to ask."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A lease that is held. A value: `after` makes another."""

    lease: Lease
    """The last that was granted."""
    interval_s: float
    """Between two renewals."""
    due_s: float
    """When to renew; on the clock of `now`."""
    is_asked: bool = False
    """Whether a renewal has no answer yet."""
    released: bool = False
    """The session has ended: whatever the directory still grants goes back."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.released and not self.is_asked

    def is_due(self, now: float) -> bool:
        """Whether it is to be renewed."""
        return now >= self.due_s and not self.released and not self.is_asked


def held(lease: Lease, lease_s: float, now: float) -> Holding:
    """A lease that was granted now. `lease_s`: how long one lasts."""
    interval_s = lease_s / RENEWALS_PER_LEASE
    return Holding(lease, interval_s, now + interval_s)


def charged(holding: Holding, load: Load) -> Holding:
    """The directory has taken another load for the session."""
    return replace(holding, lease=replace(holding.lease, load=load))


def as_charged(lease: Lease, holding: Holding | None) -> Lease:
    """A lease as it was asked for or granted, with the load of the one that is held: that was charged while
    the other was on its way.
    """
    return lease if holding is None else replace(lease, load=holding.lease.load)


# What happens.


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The directory has renewed the lease."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else holds the session, or has ended it."""

    epoch: int
    """That of the lease that is lost."""
    text: str
    """May be shown to its client."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The directory came back empty."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The directory did not answer; whether it has done what it was asked is not known."""


@dataclass(frozen=True, slots=True)
class Released:
    """The session has ended."""


Event: TypeAlias = Tick | Granted | Taken | Forgotten | Unanswered | Released


# What is to be done.


@dataclass(frozen=True, slots=True)
class Renew:
    """Ask for more time. Comes to Granted, Taken or Unanswered."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease back. Nothing comes of it: without an answer it expires by itself."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class EndSession:
    """The session is another's now."""

    session_id: str
    error: RearviewError


Action: TypeAlias = Renew | Release | EndSession
Outcome: TypeAlias = tuple[Holding, Action | None]


def not_renewed(lease: Lease, current: Lease | None, ingress: str, text: str) -> Event:
    """What it means that `ingress` could not renew a lease, since `current` is in force. `text` may be shown
    to the session's client.
    """
    if current is not None and current.ingress == ingress:
        return Granted(current)  # It has moved the session meanwhile.
    if current is not None and _is_on_its_way(lease, current):
        return Unanswered()
    return Taken(lease.epoch, text)


def is_taken(lease: Lease, current: Lease, ingress: str) -> bool:
    """Whether another than `ingress` holds the session since it was granted `lease`. Raises Refused if it is
    on its way.
    """
    if current.epoch <= lease.epoch or current.ingress == ingress:
        return False
    if _is_on_its_way(lease, current):
        raise on_its_way()
    return True


def on_its_way() -> Refused:
    """What a client is told that asks for a session meanwhile."""
    return Refused(Reason.REPLICA_LOST, "the session is on its way", retry_after_s=ON_ITS_WAY_S)


def _is_on_its_way(parked: Lease, current: Lease) -> bool:
    """Whether a session that was parked under one lease is being taken over, and not yet in a lane: it may
    still be handed back.
    """
    return not current.lane and current.epoch == parked.epoch + 1


def after(holding: Holding, event: Event, now: float) -> Outcome:
    """What is known after `event`, and what to do. `now` only grows; any clock will do."""
    match event:
        case Tick():
            return _tick(holding, now)
        case Granted(lease):
            return _granted(holding, lease, now)
        case Taken(epoch, text):
            return _taken(holding, epoch, text, now)
        case Forgotten():
            return replace(holding, due_s=now), None
        case Unanswered():
            return _wait(holding, now, min(AGAIN_S, holding.interval_s)), None
        case Released():
            return replace(holding, released=True), None if holding.released else Release(holding.lease)
        case _:
            assert_never(event)


def _tick(holding: Holding, now: float) -> Outcome:
    if not holding.is_due(now):
        return holding, None
    return replace(holding, is_asked=True), Renew(holding.lease)


def _granted(holding: Holding, lease: Lease, now: float) -> Outcome:
    # The session may have been moved while the renewal was under way.
    if lease.epoch >= holding.lease.epoch:
        holding = replace(holding, lease=as_charged(lease, holding))
    granted = _wait(holding, now, holding.interval_s)
    return granted, Release(granted.lease) if holding.released else None


def _taken(holding: Holding, epoch: int, text: str, now: float) -> Outcome:
    if holding.released or epoch < holding.lease.epoch:
        return _wait(holding, now, holding.interval_s), None
    ended = replace(holding, is_asked=False, released=True)
    return ended, EndSession(holding.lease.session_id, StreamEnded(Reason.TAKEN_OVER, text))


def _wait(holding: Holding, now: float, for_s: float) -> Holding:
    return replace(holding, is_asked=False, due_s=now + for_s)
