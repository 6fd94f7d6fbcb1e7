"""Which replicas are emptied so that they can go. Pure.

Serve takes the newest replica when it is to have one less, on the machine with the fewest, whatever that
replica holds; and `scaling.decide` gives up none that is not empty. So those that Serve would take are
*leaving*: no new session goes there while another replica has room, and theirs move to the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from rearview.control.placement import Replica

__all__ = ["leaving"]


def leaving(
    wanted: Mapping[str, int],
    replicas: Iterable[Replica],
    spares: Collection[str],
    already: Collection[str],
) -> frozenset[str]:
    """Ids of those that are to be emptied. `wanted`: how many each span is to get to, spares included; spans
    that are not in it do not scale. `already`: those that leave so far, which go on while so many are to go.

    A spare is empty as it is, and stays: which replica is one is decided elsewhere.
    """
    known = list(replicas)
    on_node = Counter(replica.node for replica in known)
    chosen: list[str] = []
    for span, count in wanted.items():
        of_span = [replica for replica in known if replica.span == span]
        in_use = [replica for replica in of_span if replica.replica_id not in spares]
        in_use.sort(key=lambda each: (each.replica_id not in already, on_node[each.node], -each.started_s))
        chosen += [each.replica_id for each in in_use[: max(0, len(of_span) - count)]]
    return frozenset(chosen)
