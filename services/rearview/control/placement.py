"""Choosing a lane: one replica per span for a new session. Pure: the caller brings what is known.

Two sources tell how full a replica is, and either may be behind: the replica's own report, and the
leases in the directory. The fuller of the two counts. A replica that is full all the same refuses when
the session is opened on it, and the caller places anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rearview.errors import Reason, Refused

__all__ = ["RETRY_AFTER_S", "Replica", "place"]

RETRY_AFTER_S = 2.0
"""Retry hint when no lane is free: sessions end, and autoscaling adds replicas, in seconds."""


@dataclass(frozen=True)
class Replica:
    """One replica of a span, as it last reported itself."""

    replica_id: str
    span: str
    """Name of the span that it serves."""
    address: str
    """Where its link listens; not used here."""
    node: str
    """The machine that it runs on."""
    free_slots: int
    """Slots free when it last reported."""
    slots: int
    """All of its slots."""

    def used(self, sessions: int) -> int:
        """Slots in use, given the `sessions` that the directory knows on this replica."""
        return max(sessions, self.slots - self.free_slots)


def place(
    spans: Sequence[str],
    replicas: Iterable[Replica],
    sessions_by_replica: Mapping[str, int],
    *,
    retry_after_s: float = RETRY_AFTER_S,
) -> tuple[str, ...]:
    """The lane of a new session: a replica id per span.

    Takes the replica with the smallest share of its slots in use; among equals that with the fewest
    leases (reports are older); then one on the node of the span before; then the smallest id.
    Raises Refused(NO_CAPACITY) if a span has no free replica.
    """
    candidates = list(replicas)
    lane: list[str] = []
    node: str | None = None
    for span in spans:
        chosen = _choose([r for r in candidates if r.span == span], sessions_by_replica, node)
        if chosen is None:
            raise Refused(
                Reason.NO_CAPACITY,
                "no replica has a free slot",
                retry_after_s=retry_after_s,
                metadata={"span": span},
            )
        lane.append(chosen.replica_id)
        node = chosen.node
    return tuple(lane)


def _choose(replicas: Sequence[Replica], sessions: Mapping[str, int], node: str | None) -> Replica | None:
    def leased(replica: Replica) -> int:
        return sessions.get(replica.replica_id, 0)

    used = {r.replica_id: r.used(leased(r)) for r in replicas}
    free = [r for r in replicas if used[r.replica_id] < r.slots]
    return min(
        free,
        key=lambda r: (used[r.replica_id] / r.slots, leased(r) / r.slots, r.node != node, r.replica_id),
        default=None,
    )
