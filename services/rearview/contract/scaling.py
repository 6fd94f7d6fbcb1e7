"""Why a span has as many replicas as it has, as a value that control, metrics and docs share."""

from __future__ import annotations

from enum import Enum

__all__ = ["Why"]


class Why(Enum):
    """What decides the number of replicas."""

    LOAD = "load"
    """Sessions that are there, or wait, at the target share."""
    SLOTS = "slots"
    AGE = "age"
    """Frames are older than the SLO, or were so lately."""
    AHEAD = "ahead"
    """Sessions that will have come by the time that a replica is ready."""
    HOLD = "hold"
    """More was needed within the hold."""
    UNHEARD = "unheard"
    """A replica serves that has said nothing yet."""
    SESSIONS = "sessions"
    """Fewer are wanted, and their sessions have to move first, or do not fit in fewer."""
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    IDLE = "idle"
    """Nobody comes: none is needed."""
