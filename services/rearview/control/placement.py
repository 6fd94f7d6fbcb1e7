"""Choosing a lane: one replica per span for a session. Pure: the caller brings what is known.

The replica with the least admitted load is taken: what its sessions declare that they will send, times what a
frame was measured to cost there. Slots are a hard limit, and decide between equals. Two sources tell how full
a replica is, and either may be behind: its own report, and the leases in the directory. So what leases have
beyond the report counts on top of it. A replica that is full all the same refuses when the session is opened
on it, and the caller places anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rearview.contract.cost import FrameCost, fits
from rearview.contract.lease import NO_LOAD, NO_USAGE, Lease, Load, Usage
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.errors import Reason, Refused

__all__ = ["ANY", "RETRY_AFTER_S", "Asked", "Full", "Replica", "place", "without"]

RETRY_AFTER_S = 2.0
"""Retry hint when no lane is free: sessions end, and autoscaling adds replicas, in seconds."""
LOAD_STEP = 0.05
"""Shares of a replica's time that lie so close together are equal: costs are measured no better."""


class Full(Refused):
    """No replica of a span has room."""

    def __init__(self, span: str, retry_after_s: float, *, by_load: bool, is_certain: bool) -> None:
        """`is_certain`: leases alone say so, and to ask the replicas would change nothing."""
        text = "no replica has time for so many frames" if by_load else "no replica has a free slot"
        metadata = {"span": span, "limit": "load" if by_load else "slots"}
        super().__init__(Reason.NO_CAPACITY, text, retry_after_s=retry_after_s, metadata=metadata)
        self.is_certain = is_certain


@dataclass(frozen=True, slots=True)
class Asked:
    """A session for which a lane is wanted."""

    load: Load = NO_LOAD
    max_steps: int = 1
    is_cached: bool = False
    """Whether it has a temporal cache."""
    settings: Settings = field(default_factory=Settings)
    """Their guidance decides how often a frame is predicted."""
    max_load: float | None = None
    """The share of its time that a replica may have given away, this session included. None: any."""
    goes_on: bool = False
    """Whether it exists, and has to leave its replicas: it may use spares, and no load is too much for it."""
    spares: frozenset[str] = frozenset()
    """Replicas that are kept for sessions that go on."""
    taken: frozenset[str] = frozenset()
    """Spares whose room somebody else is filling."""
    leaving: frozenset[str] = frozenset()
    """Replicas that are emptied so that they can go: taken where no other has room."""

    @classmethod
    def of(cls, spec: SessionSpec, load: Load, settings: Settings | None = None) -> Asked:
        """What a session of `load` asks for. `settings`: of one that goes on, the newest."""
        return cls(load, spec.max_steps, spec.cache is not None, settings or spec.settings)

    def share(self, cost: FrameCost) -> float:
        """Of a replica's time."""
        return cost.share(self.load, self.max_steps, is_cached=self.is_cached, settings=self.settings)


ANY = Asked()


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
    cost: FrameCost | None = None
    """None: it does not say."""
    share: float = 0.0
    """Of its time, what the sessions that it held then declared."""
    pixels_per_s: float = 0.0
    """What they declared."""
    started_s: float = 0.0
    """When it was ready, on its machine's wall clock. 0: it does not say."""
    is_draining: bool = False
    """Whether it is about to go, and takes no session."""

    def used(self, sessions: int) -> int:
        """Slots in use, given the `sessions` that the directory knows on this replica."""
        return max(sessions, self.slots - self.free_slots)

    def load(self, used: Usage) -> float | None:
        """Share of its time that is given away, given what leases take of it; None: not known."""
        if self.cost is None:
            return None
        return self.share + self.cost.most(max(0.0, used.load.pixels_per_s - self.pixels_per_s))

    def has_time(self, used: Usage, asked: Asked) -> bool:
        """Whether the session fits within `asked.max_load`."""
        load = self.load(used)
        if load is None or self.cost is None:
            return True
        return fits(load + asked.share(self.cost), asked.max_load)


def place(
    spans: Sequence[str],
    replicas: Iterable[Replica],
    usage: Mapping[str, Usage],
    asked: Asked = ANY,
    *,
    retry_after_s: float = RETRY_AFTER_S,
) -> tuple[str, ...]:
    """The lane of a session: a replica id per span. `usage`: what leases take of each replica.

    Takes one that is not leaving, and of these the replica with the least load, unless one of the span does
    not tell its costs; among equals that with the smallest share of its slots in use; then with the fewest
    leases (reports are older); then one on the node of the span before; then the smallest id. A session that
    goes on takes a spare where no other replica has a slot and the time for it. Raises Full.
    """
    kept_off = frozenset() if asked.goes_on else asked.spares | asked.taken
    candidates = [replica for replica in replicas if replica.replica_id not in kept_off]
    lane: list[str] = []
    node: str | None = None
    for span in spans:
        of_span = [r for r in candidates if r.span == span]
        free = [r for r in of_span if r.used(_of(usage, r).sessions) < r.slots]
        fitting = [r for r in free if asked.goes_on or r.has_time(_of(usage, r), asked)]
        if not fitting:
            is_certain = bool(of_span) and all(_of(usage, r).sessions >= r.slots for r in of_span)
            raise Full(span, retry_after_s, by_load=bool(free), is_certain=is_certain)
        chosen = _emptiest(fitting, usage, asked, node)
        lane.append(chosen.replica_id)
        node = chosen.node
    return tuple(lane)


def without(usage: Mapping[str, Usage], lease: Lease) -> Mapping[str, Usage]:
    """What the other leases take."""
    load = lease.load

    def less(used: Usage) -> Usage:
        frames, pixels = (
            used.load.frames_per_s - load.frames_per_s,
            used.load.pixels_per_s - load.pixels_per_s,
        )
        return Usage(used.sessions - 1, Load(max(0.0, frames), max(0.0, pixels)))

    mine = {each: less(used) for each, used in usage.items() if each in lease.lane}
    return {**usage, **mine}


def _emptiest(
    replicas: Sequence[Replica], usage: Mapping[str, Usage], asked: Asked, node: str | None
) -> Replica:
    loads = {r.replica_id: r.load(_of(usage, r)) for r in replicas}
    levels = {replica_id: round((load or 0.0) / LOAD_STEP) for replica_id, load in loads.items()}
    tell = None not in loads.values()

    def key(replica: Replica) -> tuple[float | str, ...]:
        leased = _of(usage, replica).sessions
        return (
            replica.replica_id in asked.taken,
            not replica.has_time(_of(usage, replica), asked),
            replica.replica_id in asked.leaving,
            replica.replica_id in asked.spares,
            levels[replica.replica_id] if tell else 0,
            replica.used(leased) / replica.slots,
            leased / replica.slots,
            replica.node != node,
            replica.replica_id,
        )

    return min(replicas, key=key)


def _of(usage: Mapping[str, Usage], replica: Replica) -> Usage:
    return usage.get(replica.replica_id, NO_USAGE)
