"""What becomes of the sessions of an ingress whose drain grace is over: others go on with them."""

from __future__ import annotations

from rearview.errors import Reason, StreamEnded
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.sessions import Sessions

__all__ = ["leave_to_others"]

RETRY_AFTER_S = 1.0
ELSEWHERE_AFTER_S = 0.1
"""The others are there already."""


def leave_to_others(
    sessions: Sessions, lanes: Lanes, leases: Leases, *, is_shared: bool, stays: bool
) -> None:
    """End every stream. With a directory that is shared, a session that has a lane stays in its replicas and
    in the directory, as if this ingress had died: whoever is asked to resume it takes it. All else ends, but
    where this process `stays` for a while: whoever is asked fetches sessions that are parked here.
    """
    retry_after_s = ELSEWHERE_AFTER_S if is_shared else RETRY_AFTER_S
    why = StreamEnded(Reason.DRAINING, "the drain grace is over", retry_after_s=retry_after_s)
    for record in sessions:
        if stays and not record.session.feed.is_attached:
            continue
        if record.stream is not None:
            record.stream.end(why)  # The first word counts.
        if is_shared and record.session.feed.is_attached:
            leases.let_go(record.session.spec.session_id, to_others=True)
            lanes.give_away(record.session.lane)
            record.session.outcomes.leave()
        sessions.close(record, why)
