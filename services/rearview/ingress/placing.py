"""A new session's way to its lane, performed. What to do next is decided in `control/opening.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from rearview.contract.lease import Lease, LeaseRequest
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.control import opening as decide
from rearview.errors import Refused
from rearview.failpoints import reach
from rearview.ingress.choosing import Choosing, declared
from rearview.ingress.demand import Demand
from rearview.ingress.lane import Lane
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases

__all__ = ["Placing"]

REFRESH_TIMEOUT_S = 0.03
"""A client that cannot be placed learns so within 100 ms, also when a replica does not answer."""


@dataclass(slots=True)
class _Attempt:
    """What a session has on its way."""

    spec: SessionSpec
    begin: Mapping[str, Any]
    settings: Settings
    """The newest."""
    wants: LeaseRequest | Lease
    """A new lease; or its own on another lane, of a session that has lost one: that stays whatever fails."""
    lane: Lane | None = None

    @property
    def is_new(self) -> bool:
        """Whether the session begins."""
        return isinstance(self.wants, LeaseRequest)


class Placing:
    """Places sessions. For one event loop."""

    def __init__(
        self,
        lanes: Lanes,
        leases: Leases,
        choosing: Choosing,
        demand: Demand,
        *,
        refresh: Callable[[float], Awaitable[None]],
        evict: Callable[[str, bool], Awaitable[tuple[str, ...] | None]],
        is_draining: Callable[[], bool],
    ) -> None:
        """`refresh(timeout_s)` asks the replicas who they are; `evict(tenant, for_slots)` ends a session of
        the tenant that nobody feeds, and returns its replicas, None if there was none.
        """
        self._lanes, self._leases, self._choosing, self._demand = lanes, leases, choosing, demand
        self._refresh, self._evict, self._is_draining = refresh, evict, is_draining
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def place(self, spec: SessionSpec, wanted: LeaseRequest) -> tuple[Lease, Lane]:
        """A lease and an open lane. Raises Refused; then, or when cancelled, nothing is held."""
        try:
            placed = await self._counted(_Attempt(spec, {}, spec.settings, wanted))
        except Refused as error:
            self._demand.refused(error)
            raise
        self._demand.admitted()
        return placed

    async def place_again(
        self, spec: SessionSpec, held: Lease, settings: Settings, begin: Mapping[str, Any]
    ) -> tuple[Lease, Lane]:
        """A new lane for a session that has lost its own. `settings`: its newest; `begin`: what its replicas
        are told of its past.

        Raises Refused and LeaseLost; then no lane is held, and the lease is as `Leases` has it.
        """
        return await self._counted(_Attempt(spec, begin, settings, held))

    async def _counted(self, attempt: _Attempt) -> tuple[Lease, Lane]:
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._place(attempt)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def settle(self) -> None:
        """Return when no session is on its way. While the ingress drains that is soon."""
        await self._idle.wait()

    async def _place(self, attempt: _Attempt) -> tuple[Lease, Lane]:
        opening, action = decide.begin()
        try:
            while True:
                event = await self._perform(attempt, action)
                if attempt.is_new and self._is_draining():
                    opening, _ = decide.after(opening, decide.Drained())
                opening, following = decide.after(opening, event)
                if isinstance(following, decide.Admit):
                    assert attempt.lane is not None, "admitted without a lane"
                    return following.lease, attempt.lane
                if isinstance(following, decide.Refuse):
                    raise following.error
                assert following is not None, f"nothing follows {event}"
                action = following
        except asyncio.CancelledError:
            _, undo = decide.after(opening, decide.GivenUp())
            if undo is not None:
                await self._perform(attempt, undo)
            raise

    async def _perform(self, attempt: _Attempt, action: decide.Action) -> decide.Event:
        try:
            return await self._do(attempt, action)
        except Exception as error:  # Whatever it is, what is held must go back first.
            return decide.Failed(error)

    async def _do(self, attempt: _Attempt, action: decide.Action) -> decide.Event:
        match action:
            case decide.Choose():
                return decide.Chosen(await self._choose(attempt))
            case decide.Acquire(replicas):
                reach("directory.set.before")
                lease = await self._lease(attempt, replicas)
                reach("directory.set.after")
                return decide.Leased(lease)
            case decide.OpenLane(lease):
                begin = {**attempt.begin, **declared(lease, attempt.settings, goes_on=not attempt.is_new)}
                attempt.lane = await self._lanes.open(attempt.spec, lease.epoch, lease.lane, begin)
                return decide.LaneOpened()
            case decide.Undo(lease):
                if attempt.lane is not None:
                    self._lanes.close(attempt.lane)
                    attempt.lane = None
                if attempt.is_new:
                    await self._leases.release(lease)
                return decide.Done()
            case decide.Refresh():
                await self._refresh(REFRESH_TIMEOUT_S)
                return decide.Done()
            case decide.Evict(for_slots):
                evicted = await self._evict(attempt.spec.tenant, for_slots) if attempt.is_new else None
                await self._leases.released()
                return decide.Evicted(evicted)
            case decide.Admit() | decide.Refuse():
                raise AssertionError(f"{action} is not to be performed")
            case _:
                assert_never(action)

    async def _choose(self, attempt: _Attempt) -> tuple[str, ...]:
        if isinstance(attempt.wants, Lease):
            return await self._choosing.to_go_on(attempt.spec, attempt.wants, attempt.settings)
        return await self._choosing.for_new(attempt.spec, attempt.wants.load)

    async def _lease(self, attempt: _Attempt, replicas: tuple[str, ...]) -> Lease:
        if isinstance(attempt.wants, LeaseRequest):
            return await self._leases.acquire(attempt.wants, replicas)
        attempt.wants = await self._leases.move(attempt.wants, replicas)
        return attempt.wants
