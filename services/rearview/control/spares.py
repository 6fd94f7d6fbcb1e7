"""Which replicas are spares: room for sessions that lose their own, and for no others. Pure.

A spare is a claim in the directory, so that every ingress knows it and one leader decides
(`ingress/spares.py`). Whoever recovers takes it by compare-and-set: it is active from then on, and another
replica that is empty becomes the spare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rearview.contract.lease import NO_USAGE, Usage
from rearview.control.placement import Replica

__all__ = ["SPARE", "Assignment", "assign"]

SPARE = "spare"
"""Owner of the claim of a spare that nobody has taken."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the leader does with claims."""

    spares: tuple[str, ...] = ()
    """Replicas that are, or are to be, spares."""
    dropped: tuple[str, ...] = ()
    """Replicas that are spares no longer: they have sessions, are gone, or are too many."""


def assign(
    wanted: Mapping[str, int],
    replicas: Iterable[Replica],
    usage: Mapping[str, Usage],
    claimed: Mapping[str, str],
) -> Assignment:
    """Who is a spare. `wanted`: how many of each span; `usage`: what leases take of each replica; `claimed`:
    the owner of each replica's claim, SPARE or the ingress that has taken it.

    A spare holds no session. One replica of a span at least is free of claims, for new sessions; who is a
    spare stays one as long as it can, and the next is the empty one that placement takes last.
    """
    known = sorted(replicas, key=lambda replica: replica.replica_id, reverse=True)
    spares: list[str] = []
    for span, most in wanted.items():
        of_span = [replica for replica in known if replica.span == span]
        empty = [each.replica_id for each in of_span if not each.used(_sessions(usage, each))]
        stay = [each for each in empty if claimed.get(each) == SPARE]
        come = [each for each in empty if each not in claimed]
        taken = sum(claimed.get(each.replica_id, SPARE) != SPARE for each in of_span)
        spares += [*stay, *come][: max(0, min(most, len(of_span) - taken - 1))]
    dropped = [each for each, owner in claimed.items() if owner == SPARE and each not in spares]
    return Assignment(tuple(spares), tuple(dropped))


def _sessions(usage: Mapping[str, Usage], replica: Replica) -> int:
    return usage.get(replica.replica_id, NO_USAGE).sessions
