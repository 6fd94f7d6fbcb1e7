"""Who owns a session, as a value that directory, control and ingress share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Lease"]


@dataclass(frozen=True)
class Lease:
    """Who owns a session."""

    session_id: str
    tenant: str
    lane: tuple[str, ...]
    """Replica id per span, in the order of the chain."""
    ingress: str
    """Id of the ingress that feeds the session."""
    epoch: int
    """Higher than every earlier epoch of the session."""
    expiry_s: float
    """Wall-clock second after which `acquire(takeover=True)` may take the lease."""
    open_time_s: float
    """Wall-clock second at which the session was opened; kept by renewals, moves and takeovers."""
