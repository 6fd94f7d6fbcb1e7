"""Who owns a session and what it takes, as values that directory, control and ingress share."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "NO_LOAD",
    "NO_USAGE",
    "UNLIMITED",
    "Claim",
    "Lease",
    "LeaseRequest",
    "Load",
    "Owner",
    "Quota",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class Load:
    """What a session says when it is opened that it will send."""

    frames_per_s: float
    pixels_per_s: float

    @classmethod
    def of(cls, frame_rate: float, width: int, height: int) -> Load:
        """That of `frame_rate` frames per second of so many pixels."""
        return cls(frame_rate, frame_rate * width * height)


NO_LOAD = Load(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that the leases of one tenant may take together, over all ingresses."""

    sessions: float
    frames_per_s: float
    pixels_per_s: float


UNLIMITED = Quota(math.inf, math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Usage:
    """What leases take together: those that have not expired."""

    sessions: int
    load: Load


NO_USAGE = Usage(0, NO_LOAD)


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A session for which a lease is asked."""

    session_id: str
    tenant: str
    load: Load = NO_LOAD
    quota: Quota = UNLIMITED
    """The tenant's."""
    token_sha256: str = ""
    """Of the session's resume token (hex), so that any ingress can tell who may resume."""


@dataclass(frozen=True)
class Lease:
    """Who owns a session."""

    session_id: str
    tenant: str
    lane: tuple[str, ...]
    """Replica id per span, in the order of the chain."""
    ingress: str
    """Id of the ingress that feeds the session. Empty: a replica has published it, which cannot know."""
    epoch: int
    """Higher than every earlier epoch of the session."""
    expiry_s: float
    """When it no longer counts for placement and quotas; seconds on the directory's clock. Ends nothing."""
    open_time_s: float
    """When the session was opened, on the directory's clock; kept by renewals and moves."""
    load: Load = NO_LOAD
    token_sha256: str = ""
    """Of the session's resume token, hex."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A lease, and where its ingress is reached."""

    lease: Lease
    address: str | None
    """As the ingress announced it. None: it has not done so for a lease time, or its id is not known."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A name that somebody holds for a while: a leader's, or that of a spare."""

    key: str
    owner: str
    number: int
    """Fences former holders: higher than that of every earlier claim of the key."""
    expiry_s: float
    """When others may take it; seconds on the directory's clock."""
