"""How many replicas a span should have: a pure function of the sessions that each one holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["desired_replicas"]


def desired_replicas(
    sessions: Sequence[float],
    current: int,
    sessions_per_replica: float,
    slots: float | None,
    spares: int = 0,
) -> int:
    """Replicas wanted for `sessions` (one number per replica that has reported), before min and max.

    Grows at once to hold all sessions at `sessions_per_replica` each, and shrinks as far. Which replica goes
    is not ours to choose: whichever it is, its sessions move to the others, which have the `slots` for them
    (None: not known yet).
    One that has not reported is taken to be needed. `spares` come on top: they hold no session, but those of
    the replica that goes may use them.
    """
    unheard = max(0, current - len(sessions))
    held = sum(sessions)
    needed = math.ceil(held / sessions_per_replica)
    return max(needed, math.ceil(held / slots) if slots else 0) + unheard + spares
