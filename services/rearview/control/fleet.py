"""What an ingress knows of replicas and lanes, as values. What changes them is in `lanes.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from rearview.control.placement import Replica

__all__ = ["Fleet", "LaneId", "LaneState", "Phase"]


@dataclass(frozen=True, slots=True)
class LaneId:
    """Which lane: a session has one for each epoch."""

    session_id: str
    epoch: int


class Phase(Enum):
    """How far a lane is."""

    DIALLING = 1
    """Links to its replicas are made; none holds a slot."""
    OPENING = 2
    """Its replicas are asked for a slot, or for the one that they hold."""
    OPEN = 3
    """Every one of them holds a slot."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane and how far it is."""

    replicas: tuple[Replica, ...]
    """One per span, as they were when the lane was chosen."""
    phase: Phase
    awaited: frozenset[str]
    """Replicas that have not done what `phase` waits for."""
    adopts: bool = False
    """Whether its replicas hold the session already, for another owner or under an older epoch."""

    @property
    def is_open(self) -> bool:
        """Whether every replica holds a slot."""
        return self.phase is Phase.OPEN

    def leads_to(self, replica_id: str) -> bool:
        """Whether the replica is one of the lane's."""
        return any(replica.replica_id == replica_id for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that is known. A value: `after` makes another."""

    spans: tuple[str, ...]
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    """By id, those that a new session may go to."""
    linked: Mapping[str, str] = field(default_factory=dict)
    """Address to replica id: a replica that nobody describes any more can still be lost."""
    lanes: Mapping[LaneId, LaneState] = field(default_factory=dict)

    def serves(self, spans: Collection[str]) -> bool:
        """Whether each of them has a replica."""
        return {replica.span for replica in self.replicas.values()} >= set(spans)

    def forget(self, replica_id: str) -> Fleet:
        """No new session goes to the replica, until it is described again."""
        left = {each: replica for each, replica in self.replicas.items() if each != replica_id}
        return replace(self, replicas=left)

    def without(self, address: str) -> Fleet:
        """The same, by where it is."""
        left = {each: replica for each, replica in self.replicas.items() if replica.address != address}
        return replace(self, replicas=left)

    def with_lane(self, lane: LaneId, state: LaneState) -> Fleet:
        """The lane is as far as `state` says."""
        return replace(self, lanes={**self.lanes, lane: state})

    def awaiting(self, address: str) -> Sequence[LaneId]:
        """Lanes that the replica there has yet to answer."""
        return [
            lane
            for lane, state in self.lanes.items()
            if any(each.address == address and each.replica_id in state.awaited for each in state.replicas)
        ]
