"""How many replicas a span should have: a pure function of the sessions that each one holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["desired_replicas"]


def desired_replicas(sessions: Sequence[float], current: int, sessions_per_replica: float) -> int:
    """Replicas wanted for `sessions` (one number per replica that has reported), before min and max.

    Grows at once to hold all sessions at `sessions_per_replica` each. Shrinks only by replicas that are
    empty: which replica goes is not ours to choose, and a session's past lives on its replica.
    """
    needed = math.ceil(sum(sessions) / sessions_per_replica)
    if needed >= current:
        return needed
    empty = sum(1 for count in sessions if count == 0)
    return max(needed, current - empty)
