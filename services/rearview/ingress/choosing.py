"""Which replicas a session is to go to, by what replicas report and leases say. Decided in `control/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rearview.contract.lease import NO_USAGE, Lease, Load
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.control.placement import RETRY_AFTER_S, Asked, Full, without
from rearview.control.rebalance import Movable, Shift, rebalance
from rearview.ingress.emptying import Emptying
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.session import IngressSession
from rearview.ingress.spares import Spares
from rearview.placement_config import PlacementConfig
from rearview.transport.wire import encode_lease, encode_settings

__all__ = ["Choosing", "declared"]

ALL = 1.0
"""A replica's whole time."""
TAKES = 4
"""Tries to find a lane whose spares nobody else has taken meanwhile."""


class Choosing:
    """Chooses lanes. For one event loop. Its coroutines raise Full and DirectoryUnavailable."""

    def __init__(
        self, lanes: Lanes, leases: Leases, spares: Spares, emptying: Emptying, config: PlacementConfig
    ) -> None:
        self._lanes, self._leases, self._spares = lanes, leases, spares
        self._emptying, self._max_load = emptying, config.max_load

    async def for_new(self, spec: SessionSpec, load: Load) -> tuple[str, ...]:
        """A replica per span, none a spare, each with a slot and with time for what the session declares."""
        usage = await self._leases.usage_by_replica()
        asked = replace(Asked.of(spec, load), max_load=self._max_load)
        return self._lanes.choose(
            usage, replace(asked, spares=self._spares.reserved, leaving=self._emptying.leaving)
        )

    def frame_s(self, session: IngressSession) -> float:
        """Seconds that its next frame takes of the replica that it takes most of. 0: not known."""
        asked = Asked.of(session.spec, Load.of(1.0, *session.size), session.settings)
        costs = [replica.cost for replica in self._lanes.fleet.replicas.values()]
        return max((asked.share(cost) for cost in costs if cost is not None), default=0.0)

    async def check_growth(self, session: IngressSession, load: Load, settings: Settings) -> None:
        """Raises Full where a replica that the session is on has no time for what it would declare: frames of
        another size.
        """
        lease = session.lease
        more = max(0.0, load.pixels_per_s - lease.load.pixels_per_s)
        if not more or self._max_load is None:
            return
        usage = await self._leases.usage_by_replica()
        asked = replace(Asked.of(session.spec, Load(0.0, more), settings), max_load=self._max_load)
        replicas = self._lanes.fleet.replicas
        for replica in (replicas[each] for each in lease.lane if each in replicas):
            if not replica.has_time(usage.get(replica.replica_id, NO_USAGE), asked):
                raise Full(replica.span, RETRY_AFTER_S, by_load=True, is_certain=False)

    async def to_go_on(self, spec: SessionSpec, lease: Lease, settings: Settings) -> tuple[str, ...]:
        """A replica per span for a session that leaves others: any that has a slot. Spares are taken.
        `settings`: the session's newest.
        """
        usage = without(await self._leases.usage_by_replica(), lease)  # It is in nobody's way but its own.
        asked = replace(
            Asked.of(spec, lease.load, settings),
            max_load=self._max_load or ALL,
            goes_on=True,
            leaving=self._emptying.leaving,
        )
        lane: tuple[str, ...] = ()
        for _ in range(TAKES):
            spares, taken = self._spares.free, self._spares.others
            before, lane = lane, self._lanes.choose(usage, replace(asked, spares=spares, taken=taken))
            if lane == before or await self._spares.take(lane):
                break  # Else others have taken some of it: there may be room elsewhere.
        return lane

    async def to_leave(self, spec: SessionSpec, lease: Lease, settings: Settings) -> tuple[str, ...]:
        """A replica per span for a session that leaves one that is emptied: none of those, none a spare, each
        with a slot and with time for it.
        """
        usage = without(await self._leases.usage_by_replica(), lease)
        kept_off = self._spares.reserved | self._emptying.leaving
        asked = Asked.of(spec, lease.load, settings)
        return self._lanes.choose(usage, replace(asked, max_load=self._max_load or ALL, spares=kept_off))

    async def to_shift(self, sessions: Iterable[Movable], now: float) -> Shift | None:
        """The move of one of the sessions that is worth most; None if none is worth it. Keeps off spares and
        what is emptied.
        """
        usage = await self._leases.usage_by_replica()
        kept_off = self._spares.reserved | self._emptying.leaving
        replicas = self._lanes.fleet.replicas.values()
        return rebalance((each for each in replicas if each.replica_id not in kept_off), usage, sessions, now)


def declared(lease: Lease, settings: Settings, *, goes_on: bool) -> Mapping[str, Any]:
    """What OPEN tells of a session's load and lease, and whether the session exists already: then it counts
    by the newest `settings`, until the lane is told of others.
    """
    load = lease.load
    told = {"frames_per_s": load.frames_per_s, "pixels_per_s": load.pixels_per_s, "goes_on": goes_on}
    newest = {"settings": encode_settings(settings)} if goes_on else {}
    return {"declared": {**told, **newest}, "lease": encode_lease(lease)}
