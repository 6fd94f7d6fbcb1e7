"""What an ingress knows of replicas and lanes, and what follows when something happens to them.

`after(fleet, event)` gives what is known after an event and the actions that follow from it. A shell performs
the actions over links, in order, and tells what comes of them as further events (`ingress/lanes.py`).

    DIALLING ── every replica is linked ──> OPENING ── every one has given a slot ──> OPEN
        └──────────── refused ─────────────────┴──── lost, or wanted no more ───────────┘

A new lane asks all its replicas at a time. One that adopts a session asks the last span first and then the
one before: until a span is adopted, what it sends is fenced by the next one, so nothing is lost.

What surprises: whoever may have been asked for a slot is told to free it, whether or not it has answered. On
one link nothing overtakes, so no replica keeps a slot that nobody frees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias, assert_never

from rearview.control.fleet import Fleet, LaneId, LaneState, Phase
from rearview.control.lane_events import (
    Action,
    Described,
    Dial,
    DialFailed,
    Dialled,
    Doubted,
    Draining,
    EndSession,
    Event,
    FreeSlot,
    LaneLost,
    LaneTaken,
    LaneUnwanted,
    LaneWanted,
    LinkLost,
    Opened,
    Refuse,
    SlotRefused,
    SlotTaken,
    SlotUnanswered,
    Stopping,
    TakeSlot,
    Told,
    Vacate,
)
from rearview.errors import RearviewError, Reason, Refused, StreamEnded

__all__ = ["RETRY_AFTER_S", "after"]

ADOPTION_S = 60.0
"""What another owner has not adopted by then, it never will."""
RETRY_AFTER_S = 1.0
"""Retry hint when a replica is lost: others are known already."""

Outcome: TypeAlias = tuple[Fleet, tuple[Action, ...]]


def after(fleet: Fleet, event: Event) -> Outcome:
    """What is known after `event`, and what to do, in order."""
    match event:
        case Described(replicas):
            return replace(fleet, replicas={replica.replica_id: replica for replica in replicas}), ()
        case Told(replica):
            if fleet.replicas.get(replica.replica_id) == replica:
                return fleet, ()  # Said again; with many replicas the copy is dear.
            return replace(fleet, replicas={**fleet.replicas, replica.replica_id: replica}), ()
        case LaneWanted():
            return _want(fleet, event)
        case LaneUnwanted(lane):
            return _remove(fleet, lane)
        case Dialled(lane, replica):
            known = replace(fleet, linked={**fleet.linked, replica.address: replica.replica_id})
            return _answered(known, lane, replica.replica_id, Phase.DIALLING)
        case DialFailed(lane, replica):
            return _lose(fleet.forget(replica.replica_id), lane)
        case SlotTaken(lane, replica_id):
            return _answered(fleet, lane, replica_id, Phase.OPENING)
        case SlotRefused(lane, replica_id, error):
            drains = error.reason is Reason.DRAINING
            return _refuse(fleet.forget(replica_id) if drains else fleet, lane, error, answered=True)
        case SlotUnanswered(lane, replica_id):
            return _lose(fleet.forget(replica_id), lane)
        case LaneLost(lane):
            return _lose(fleet, lane)
        case LaneTaken(lane, closed):
            return _give_away(fleet, lane, _given_away(closed))
        case LinkLost(address):
            return _lose_replica(fleet, address)
        case Doubted(address):
            return _lose_all(fleet.without(address), fleet.awaiting(address))
        case Draining(address):
            return _drain(fleet, fleet.linked.get(address, ""))
        case Stopping():
            return _stop(fleet)
        case _:
            assert_never(event)


def _want(fleet: Fleet, wanted: LaneWanted) -> Outcome:
    lane = wanted.lane
    assert lane not in fleet.lanes, f"epoch {lane.epoch} of a session is opened twice"
    replicas = tuple(fleet.replicas[each] for each in wanted.replicas if each in fleet.replicas)
    if len(replicas) < len(wanted.replicas):
        return fleet, (Refuse(lane, _gone()),)
    state = LaneState(replicas, Phase.DIALLING, frozenset(wanted.replicas), wanted.adopts)
    return fleet.with_lane(lane, state), tuple(Dial(lane, replica) for replica in replicas)


def _answered(fleet: Fleet, lane: LaneId, replica_id: str, phase: Phase) -> Outcome:
    """A replica has done what the lane waits for in `phase`; the last one brings it to the next."""
    state = fleet.lanes.get(lane)
    if state is None or state.phase is not phase:
        return fleet, ()
    state = replace(state, awaited=state.awaited - {replica_id})
    if state.awaited:
        asked = _asked(lane, state)[-1:] if phase is Phase.OPENING and state.adopts else ()
        return fleet.with_lane(lane, state), asked
    if phase is Phase.OPENING:
        return fleet.with_lane(lane, replace(state, phase=Phase.OPEN)), (Opened(lane),)
    everyone = frozenset(replica.replica_id for replica in state.replicas)
    state = replace(state, phase=Phase.OPENING, awaited=everyone)
    return fleet.with_lane(lane, state), _asked(lane, state)[-1 if state.adopts else 0 :]


def _asked(lane: LaneId, state: LaneState) -> tuple[TakeSlot, ...]:
    """What is asked of each replica that has not given its slot, in order of spans."""
    following = (*(replica.address for replica in state.replicas[1:]), None)
    hops = zip(state.replicas, following, strict=True)
    return tuple(
        TakeSlot(lane, replica, address, state.adopts)
        for replica, address in hops
        if replica.replica_id in state.awaited
    )


def _refuse(fleet: Fleet, lane: LaneId, error: RearviewError, *, answered: bool = False) -> Outcome:
    """One replica's refusal is the lane's, unless the lane is gone or open."""
    state = fleet.lanes.get(lane)
    if state is None or state.phase is Phase.OPEN:
        return fleet, ()
    # Who refuses to be adopted, and who was not asked, has the session for another owner.
    fleet, freed = _remove(fleet, lane, spared=state.awaited if answered and state.adopts else frozenset())
    return fleet, (*freed, Refuse(lane, error))


def _lose(fleet: Fleet, lane: LaneId) -> Outcome:
    """The lane is broken, whatever its phase."""
    state = fleet.lanes.get(lane)
    if state is None:
        return fleet, ()
    if state.phase is not Phase.OPEN:
        return _refuse(fleet, lane, _gone())
    fleet, freed = _remove(fleet, lane)
    return fleet, (*freed, EndSession(lane, _lost()))


def _give_away(fleet: Fleet, lane: LaneId, why: RearviewError) -> Outcome:
    """The lane is another's, or is about to be: it adopts one span after the other."""
    state = fleet.lanes.get(lane)
    if state is None:
        return fleet, ()
    fleet, freed = _remove(fleet, lane, after_s=ADOPTION_S)
    return fleet, (*freed, EndSession(lane, why) if state.phase is Phase.OPEN else Refuse(lane, why))


def _lose_replica(fleet: Fleet, address: str) -> Outcome:
    replica_id = fleet.linked.get(address, "")
    linked = {known: replica for known, replica in fleet.linked.items() if known != address}
    fleet = replace(fleet.without(address), linked=linked)
    return _lose_all(fleet, [lane for lane, state in fleet.lanes.items() if state.leads_to(replica_id)])


def _lose_all(fleet: Fleet, lanes: Sequence[LaneId]) -> Outcome:
    actions: list[Action] = []
    for lane in lanes:
        fleet, more = _lose(fleet, lane)
        actions.extend(more)
    return fleet, tuple(actions)


def _drain(fleet: Fleet, replica_id: str) -> Outcome:
    lanes = [lane for lane, state in fleet.lanes.items() if state.is_open and state.leads_to(replica_id)]
    return fleet.forget(replica_id), tuple(map(Vacate, lanes))


def _stop(fleet: Fleet) -> Outcome:
    actions: list[Action] = []
    for lane, state in fleet.lanes.items():
        fleet, freed = _remove(fleet, lane)
        refused = () if state.phase is Phase.OPEN else (Refuse(lane, _stopped()),)
        actions.extend((*freed, *refused))
    return replace(fleet, replicas={}), tuple(actions)


def _remove(
    fleet: Fleet, lane: LaneId, after_s: float = 0.0, spared: frozenset[str] = frozenset()
) -> Outcome:
    """Without the lane, and with every slot given back that it was asked for, but on `spared` replicas."""
    state = fleet.lanes.get(lane)
    if state is None:
        return fleet, ()
    left = {each: known for each, known in fleet.lanes.items() if each != lane}
    holders = () if state.phase is Phase.DIALLING else state.replicas
    freed = tuple(FreeSlot(lane, r.address, after_s) for r in holders if r.replica_id not in spared)
    return replace(fleet, lanes=left), freed


def _gone() -> Refused:
    return Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=RETRY_AFTER_S)


def _lost() -> StreamEnded:
    return StreamEnded(Reason.REPLICA_LOST, "a replica was lost with the session", retry_after_s=1.0)


def _given_away(closed: bool) -> StreamEnded:
    reason, what = (Reason.CLOSED, "closed") if closed else (Reason.TAKEN_OVER, "taken over")
    return StreamEnded(reason, f"the session was {what}")


def _stopped() -> Refused:
    return Refused(Reason.DRAINING, "the service has stopped", retry_after_s=RETRY_AFTER_S)
