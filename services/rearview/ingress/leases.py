"""The leases of one ingress, kept against a directory. What to do is decided in `control/leases.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rearview.contract.lease import Lease, LeaseRequest, Load, Owner, Quota, Usage
from rearview.control import leases as decide
from rearview.control.leases import Holding
from rearview.directory.protocol import (
    MAX_RENEWED,
    Directory,
    DirectoryEmpty,
    DirectoryUnavailable,
    LeaseLost,
)
from rearview.errors import RearviewError
from rearview.ingress.renewing import renewals
from rearview.ingress.shared import Shared
from rearview.telemetry.logging import log_fault

__all__ = ["Leases"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
ROUNDS = 20
"""Between two renewals of one lease all that is due is renewed at most so often: many together."""


class Leases:
    """Takes, renews and releases; tells a directory that came back empty what there is. Of one event loop."""

    def __init__(
        self,
        directory: Directory,
        ingress_id: str,
        lease_s: float,
        *,
        on_granted: Callable[[Lease], None],
        on_taken: Callable[[str, RearviewError], None],
        held: Callable[[], Awaitable[Mapping[str, Lease | None]]],
    ) -> None:
        """`on_granted`: a lease was renewed. `on_taken(session_id, why)`: another ingress has the session.

        `held`: the sessions that replicas hold, whoever owns them, and leases as far as those know.
        """
        self._directory, self._id = directory, ingress_id
        self._lease_s, self._interval_s = lease_s, lease_s / decide.RENEWALS_PER_LEASE
        self._on_granted, self._on_taken, self._held = on_granted, on_taken, held
        self._usage, self._woken = Shared(directory.usage_by_replica), asyncio.Event()
        self._address, self._announce_due_s = "", 0.0
        self._serves = True  # Whether the directory did when it was last asked.
        self._holdings: dict[str, Holding] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._releasing: set[asyncio.Task[None]] = set()

    async def begin(self, address: str) -> None:
        """Announce this ingress, reached at `address`; a directory that nobody has used yet serves then."""
        self._address = address
        await self._announce()

    async def usage_by_replica(self) -> Mapping[str, Usage]:
        """What the leases that count take of each replica. Raises DirectoryUnavailable."""
        return await self._noticing(self._usage())

    async def acquire(self, wanted: LeaseRequest, replicas: tuple[str, ...]) -> Lease:
        """A lease for a new session. Raises LeaseHeld, QuotaExceeded or DirectoryUnavailable.

        Cancelled, it is released as soon as the directory has granted it: a call cannot be taken back.
        """
        asking = self._spawn(self._acquire(wanted, replicas))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._release_unwanted)
            raise

    async def move(self, lease: Lease, replicas: tuple[str, ...]) -> Lease:
        """The lease of a session that is kept, with another lane and a higher epoch, which fences the lane
        before. Raises LeaseLost and DirectoryUnavailable; goes on when cancelled.
        """
        return await asyncio.shield(self._spawn(self._move(lease, replicas)))

    async def charge(self, session_id: str, load: Load, quota: Quota) -> None:
        """Another load of a kept session counts. Raises QuotaExceeded, LeaseLost, DirectoryUnavailable."""
        await self._noticing(_charge(self._directory, self._holdings.get(session_id), load, quota))
        if session_id in self._holdings:  # Else it has ended meanwhile.
            self._set(decide.charged(self._holdings[session_id], load))
            self._on_granted(self._holdings[session_id].lease)

    async def _move(self, lease: Lease, replicas: tuple[str, ...]) -> Lease:
        lease = decide.as_charged(lease, self._holdings.get(lease.session_id))
        try:
            moved = await self._noticing(self._directory.move(lease, lane=replicas, ingress=self._id))
        except LeaseLost as error:
            if error.current is None or error.current.ingress != self._id:
                raise
            return await self._move(error.current, replicas)  # Moved before; the answer was lost.
        if lease.session_id not in self._holdings:  # The session has ended meanwhile.
            self._spawn_release(moved)
            return moved
        self.keep(moved)
        return self._holdings[lease.session_id].lease

    async def owner_of(self, session_id: str) -> Owner | None:
        """The lease of any session, and whether its ingress lives. Raises DirectoryUnavailable."""
        return await self._noticing(self._directory.owner_of(session_id))

    async def of(self, tenant: str) -> Sequence[Lease]:
        """Those of a tenant's sessions, whoever holds them, oldest session first. Raises
        DirectoryUnavailable.
        """
        return await self._noticing(self._directory.list(tenant))

    async def take(self, lease: Lease, min_epoch: int = 0) -> Lease:
        """Compare-and-set: the session is this ingress's, and another's no more. Raises LeaseLost if it has
        changed hands since, and DirectoryUnavailable. `min_epoch`: the highest that replicas have seen.
        """
        asked = self._directory.move(lease, lane=lease.lane, ingress=self._id, min_epoch=min_epoch)
        return await self._noticing(asked)

    async def hand_back(self, former: Lease) -> None:
        """Undo `take`: the session is its former owner's again, and has no lane; if the directory answers."""
        holding = self._holdings.pop(former.session_id, None)
        if holding is not None:
            with contextlib.suppress(LeaseLost, DirectoryUnavailable):
                await self._directory.move(holding.lease, lane=(), ingress=former.ingress)

    async def is_taken(self, lease: Lease) -> bool:
        """Whether somebody else is known to hold the session since this lease was granted. A directory that
        does not answer, or has forgotten, takes nothing from anybody. Raises Refused if it is on its way.
        """
        try:
            known = await self.owner_of(lease.session_id)
        except DirectoryUnavailable:
            return False
        return known is not None and decide.is_taken(lease, known.lease, self._id)

    def keep(self, lease: Lease) -> None:
        """Renew it from now on, until `let_go`."""
        lease = decide.as_charged(lease, self._holdings.get(lease.session_id))
        self._holdings[lease.session_id] = decide.held(lease, self._lease_s, time.monotonic())

    def let_go(self, session_id: str, *, to_others: bool = False) -> None:
        """The session has ended. `to_others`: it has not, and is in the directory for whoever takes it."""
        holding = self._holdings.pop(session_id, None) if to_others else self._holdings.get(session_id)
        if holding is None or to_others:
            return
        holding, action = decide.after(holding, decide.Released(), time.monotonic())
        self._set(holding)
        if isinstance(action, decide.Release):
            self._spawn_release(action.lease)

    async def release(self, lease: Lease) -> None:
        """Give back a lease that is not kept. Goes on when cancelled."""
        await asyncio.shield(self._spawn_release(lease))

    async def released(self) -> None:
        """Return when the directory was told of every lease that was let go, or did not answer."""
        if self._releasing:
            await asyncio.wait(tuple(self._releasing))

    async def run(self) -> None:
        """Renew and announce what is due, for ever."""
        while True:
            due_s = min([self._announce_due_s, *(each.due_s for each in self._holdings.values())])
            rest_s = max(due_s - time.monotonic(), self._interval_s / ROUNDS)
            with contextlib.suppress(TimeoutError):  # A lease that comes meanwhile is due later.
                await asyncio.wait_for(self._woken.wait(), rest_s)
            self._woken.clear()
            await self._renew_due()
            if time.monotonic() >= self._announce_due_s:
                await self._announce()

    async def settle(self) -> None:
        """Wait for what the directory was asked. Each call ends by itself."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._usage.settle()

    async def _acquire(self, wanted: LeaseRequest, replicas: tuple[str, ...]) -> Lease:
        await self.released()  # What ended before this began counts no more.
        return await self._noticing(self._directory.acquire(wanted, replicas, self._id))

    async def _renew_due(self) -> None:
        """Renew what is due, many in one call."""
        now = time.monotonic()
        due = [session_id for session_id, holding in self._holdings.items() if holding.is_due(now)]
        for first in range(0, len(due), MAX_RENEWED):
            leases = [*self._to_renew(due[first : first + MAX_RENEWED])]
            for lease, event in zip(leases, await renewals(self._directory, leases, self._id), strict=True):
                await self._renewed(lease.session_id, event)

    def _to_renew(self, session_ids: Iterable[str]) -> Iterator[Lease]:
        """Those of them that are to be asked for; they count as asked from now on."""
        for session_id in session_ids:
            holding = self._holdings.get(session_id)
            if holding is not None:  # Else it has ended while others were renewed.
                holding, action = decide.after(holding, decide.Tick(), time.monotonic())
                self._set(holding)
                if isinstance(action, decide.Renew):
                    yield action.lease

    async def _renewed(self, session_id: str, event: decide.Event) -> None:
        holding = self._holdings.get(session_id)
        if holding is None:
            return
        holding, action = decide.after(holding, event, time.monotonic())
        self._set(holding)
        if isinstance(event, decide.Granted) and not holding.released:
            self._on_granted(holding.lease)
        if isinstance(action, decide.Release):
            await self._release(action.lease)
        elif isinstance(action, decide.EndSession):
            self._on_taken(session_id, action.error)

    async def _announce(self) -> None:
        after_s = decide.AGAIN_S
        try:
            with contextlib.suppress(DirectoryUnavailable):
                told = await self._directory.announce(self._id, self._address) or await self._tell_again()
                self._serves, after_s = told, self._interval_s if told else decide.AGAIN_S
        except Exception as error:  # The edge of a task that must not end.
            log_fault(logger, "the ingress could not be announced", error)
        self._announce_due_s = time.monotonic() + min(after_s, self._interval_s)

    async def _tell_again(self) -> bool:
        """The directory came back empty: renew what is held; returns whether it serves then."""
        now = time.monotonic()
        for session_id, holding in tuple(self._holdings.items()):
            self._holdings[session_id], _ = decide.after(holding, decide.Forgotten(), now)
        await self._renew_due()
        held = await self._held()
        await self._directory.publish([lease for lease in held.values() if lease is not None])
        serves = await self._directory.reopen(held)
        logger.warning("the session directory came back empty; it %s", "serves" if serves else "waits")
        return serves

    async def _noticing(self, call: Awaitable[T]) -> T:
        """Find out at once, and not at the next renewal, that the directory came back empty."""
        try:
            return await call
        except DirectoryEmpty:
            if self._serves:
                self._serves, self._announce_due_s = False, time.monotonic()
                self._woken.set()
            raise

    async def _release(self, lease: Lease) -> None:
        with contextlib.suppress(DirectoryUnavailable):  # The lease then expires by itself.
            await self._directory.release(lease)

    def _release_unwanted(self, asking: asyncio.Task[Lease]) -> None:
        if not asking.cancelled() and asking.exception() is None:
            self._spawn_release(asking.result())

    def _spawn_release(self, lease: Lease) -> asyncio.Task[None]:
        task = self._spawn(self._release(lease))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        return task

    def _set(self, holding: Holding) -> None:
        if holding.is_over:
            self._holdings.pop(holding.lease.session_id, None)
        else:
            self._holdings[holding.lease.session_id] = holding

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever asked may have gone, and hears it no more.


async def _charge(directory: Directory, holding: Holding | None, load: Load, quota: Quota) -> None:
    """See `Leases.charge`. A lease that the directory has forgotten is written again first, as when it is
    renewed.
    """
    if holding is None:
        raise LeaseLost(None)
    try:
        await directory.charge(holding.lease, load, quota)
    except LeaseLost as error:
        if error.current is not None:
            raise
        await directory.charge(await directory.renew(holding.lease), load, quota)
