"""The leases of one ingress, kept against a directory. What to do is decided in `control/leases.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

from rearview.contract.lease import Lease
from rearview.contract.session import SessionSpec
from rearview.control import leases as decide
from rearview.control.leases import Holding
from rearview.directory.protocol import Directory, DirectoryUnavailable, LeaseHeld, LeaseLost
from rearview.errors import RearviewError

__all__ = ["Leases"]

logger = logging.getLogger(__name__)


class Leases:
    """Takes, renews and releases. For one event loop."""

    def __init__(
        self,
        directory: Directory,
        ingress_id: str,
        lease_s: float,
        *,
        on_granted: Callable[[Lease], None],
        on_taken: Callable[[str, RearviewError], None],
    ) -> None:
        """`on_granted`: a lease that is kept was renewed, or taken again under a higher epoch.

        `on_taken(session_id, why)`: another ingress holds the session now.
        """
        self._directory, self._id, self._lease_s = directory, ingress_id, lease_s
        self._on_granted, self._on_taken = on_granted, on_taken
        self._holdings: dict[str, Holding] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def acquire(self, spec: SessionSpec, replicas: tuple[str, ...]) -> Lease:
        """A lease for a new session. Raises LeaseHeld or DirectoryUnavailable.

        Cancelled, it is released as soon as the directory has granted it: a call cannot be taken back.
        """
        asking = self._spawn(
            self._directory.acquire(spec.session_id, spec.tenant, replicas, self._id, time.time())
        )
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._release_unwanted)
            raise

    async def move(self, lease: Lease, replicas: tuple[str, ...]) -> Lease:
        """The lease of a session that is kept, with another lane and a higher epoch, which fences the lane
        before. Kept from now on in place of `lease`. Raises LeaseLost and DirectoryUnavailable.
        """
        try:
            moved = await self._directory.move(lease.session_id, lease.epoch, replicas, self._id, time.time())
        except LeaseLost as error:
            if error.current is None or error.current.ingress != self._id:
                raise
            # Moved before, by a call whose answer was lost.
            return await self.move(error.current, replicas)
        if lease.session_id in self._holdings:
            self.keep(moved)
        else:  # The session has ended meanwhile.
            self._spawn(self._release(moved))
        return moved

    def keep(self, lease: Lease) -> None:
        """Renew it from now on, until `let_go`."""
        self._holdings[lease.session_id] = decide.held(lease, self._lease_s, time.monotonic())

    def let_go(self, session_id: str) -> None:
        """The session has ended."""
        holding = self._holdings.get(session_id)
        if holding is None:
            return
        holding, action = decide.after(holding, decide.Released(), time.monotonic())
        self._set(holding)
        if isinstance(action, decide.Release):
            self._spawn(self._release(action.lease))

    async def release(self, lease: Lease) -> None:
        """Give back a lease that is not kept. Goes on when cancelled."""
        await asyncio.shield(self._spawn(self._release(lease)))

    async def run(self) -> None:
        """Renew what is due, for ever."""
        while True:
            due_s = min((each.due_s for each in self._holdings.values()), default=float("inf"))
            # A lease that comes meanwhile is due later.
            await asyncio.sleep(min(due_s - time.monotonic(), self._lease_s / decide.RENEWALS_PER_LEASE))
            for session_id in tuple(self._holdings):
                await self._tick(session_id)

    async def settle(self) -> None:
        """Wait for what the directory was asked. Each call ends by itself."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tick(self, session_id: str) -> None:
        event: decide.Event | None = decide.Tick()
        while event is not None and (holding := self._holdings.get(session_id)) is not None:
            if isinstance(event, decide.Granted) and not holding.released:
                self._on_granted(event.lease)
            holding, action = decide.after(holding, event, time.monotonic())
            self._set(holding)
            event = None if action is None else await self._perform(action)

    async def _perform(self, action: decide.Action) -> decide.Event | None:
        try:
            match action:
                case decide.Renew(lease):
                    return decide.Granted(
                        await self._directory.renew(lease.session_id, lease.epoch, time.time())
                    )
                case decide.Acquire(lease, min_epoch):
                    granted = await self._directory.acquire(
                        lease.session_id, lease.tenant, lease.lane, self._id, time.time(), min_epoch
                    )
                    return decide.Granted(granted)
                case decide.Release(lease):
                    await self._release(lease)
                case decide.EndSession(session_id, error):
                    self._on_taken(session_id, error)
                case _:
                    assert_never(action)
        except LeaseLost as error:
            return decide.Gone() if error.current is None else decide.Taken(error.message)
        except LeaseHeld as error:
            return decide.Taken(error.message)
        except DirectoryUnavailable:
            logger.warning("the session directory does not answer; sessions go on")
            return decide.Unanswered()
        return None

    async def _release(self, lease: Lease) -> None:
        with contextlib.suppress(DirectoryUnavailable):  # The lease then expires by itself.
            await self._directory.release(lease.session_id, lease.epoch)

    def _release_unwanted(self, asking: asyncio.Task[Lease]) -> None:
        if not asking.cancelled() and asking.exception() is None:
            self._spawn(self._release(asking.result()))

    def _set(self, holding: Holding) -> None:
        if holding.is_over:
            self._holdings.pop(holding.lease.session_id, None)
        else:
            self._holdings[holding.lease.session_id] = holding

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
