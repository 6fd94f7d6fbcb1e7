"""Leases of an ingress against a directory that is slow, away, empty or another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from rearview.contract.lease import Lease
from rearview.contract.session import SessionSpec
from rearview.directory.memory import MemoryDirectory
from rearview.directory.protocol import DirectoryUnavailable
from rearview.errors import RearviewError, Reason
from rearview.ingress.leases import Leases
from support.raw_stream import eventually

pytestmark = pytest.mark.unit

LANE = ("a", "b")
LEASE_S = 0.15
SPEC = SessionSpec("s", 64, 64, 2, tenant="t")


class Moody(MemoryDirectory):
    """Waits before it grants, or does not answer at all."""

    def __init__(self) -> None:
        super().__init__(lease_s=LEASE_S)
        self.open = asyncio.Event()
        self.open.set()
        self.is_away = False
        self.refused = 0

    async def acquire(self, *args: object, **kwargs: object) -> Lease:
        await self.open.wait()
        self._check()
        return await super().acquire(*args, **kwargs)  # type: ignore[arg-type]

    async def renew(self, session_id: str, epoch: int, now: float) -> Lease:
        self._check()
        return await super().renew(session_id, epoch, now)

    async def release(self, session_id: str, epoch: int) -> None:
        self._check()
        await super().release(session_id, epoch)

    def _check(self) -> None:
        if self.is_away:
            self.refused += 1
            raise DirectoryUnavailable


@dataclass
class Kept:
    """Leases that are renewed, and what was told of them."""

    directory: Moody
    leases: Leases
    granted: list[Lease] = field(default_factory=list)
    taken: list[tuple[str, Reason]] = field(default_factory=list)

    async def keep(self) -> Lease:
        lease = await self.leases.acquire(SPEC, LANE)
        self.leases.keep(lease)
        return lease


@asynccontextmanager
async def kept() -> AsyncIterator[Kept]:
    found: list[Kept] = []
    directory = Moody()

    def on_taken(session_id: str, why: RearviewError) -> None:
        found[0].taken.append((session_id, why.reason))

    leases = Leases(
        directory,
        "i1",
        LEASE_S,
        on_granted=lambda lease: found[0].granted.append(lease),
        on_taken=on_taken,
    )
    found.append(Kept(directory, leases))
    running = asyncio.create_task(leases.run())
    try:
        yield found[0]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await leases.settle()


async def test_a_lease_is_renewed_until_its_session_ends() -> None:
    async with kept() as k:
        lease = await k.keep()
        await eventually(lambda: len(k.granted) >= 2)
        assert k.granted[-1].expiry_s > lease.expiry_s
        k.leases.let_go("s")
        await k.leases.settle()
        assert await k.directory.list(None) == []
        told = len(k.granted)
        await asyncio.sleep(LEASE_S)
        assert len(k.granted) == told
        assert k.taken == []


async def test_a_session_outlives_a_directory_that_is_away() -> None:
    async with kept() as k:
        await k.keep()
        k.directory.is_away = True
        await eventually(lambda: k.directory.refused >= 2)
        told = len(k.granted)
        k.directory.is_away = False
        await eventually(lambda: len(k.granted) > told)
        assert k.taken == []


async def test_a_lease_that_the_directory_forgot_is_taken_again_under_a_higher_epoch() -> None:
    async with kept() as k:
        lease = await k.keep()
        k.directory._entries.clear()
        await eventually(lambda: k.granted != [] and k.granted[-1].epoch > lease.epoch)
        assert await k.directory.get("s") == k.granted[-1]


async def test_a_lease_that_is_taken_again_after_its_session_ended_goes_back() -> None:
    async with kept() as k:
        await k.keep()
        k.directory.open.clear()
        k.directory._entries.clear()
        await eventually(lambda: len(k.directory.open._waiters) == 1)  # type: ignore[attr-defined]
        k.leases.let_go("s")
        k.directory.open.set()
        await eventually(lambda: not k.leases._holdings)
        await k.leases.settle()
        assert await k.directory.list(None) == []


async def test_another_ingress_that_takes_the_session_is_told_once() -> None:
    async with kept() as k:
        lease = await k.keep()
        await k.directory.move("s", lease.epoch, LANE, "i2", 0.0)
        await eventually(lambda: k.taken == [("s", Reason.TAKEN_OVER)])
        k.leases.let_go("s")
        await asyncio.sleep(LEASE_S)
        assert len(k.taken) == 1
        (left,) = await k.directory.list(None)
        assert left.ingress == "i2"


async def test_a_lease_that_nobody_waits_for_any_more_is_released_when_it_comes() -> None:
    async with kept() as k:
        k.directory.open.clear()
        asking = asyncio.create_task(k.leases.acquire(SPEC, LANE))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        k.directory.open.set()
        await k.leases.settle()
        assert k.directory._entries["s"].epoch == 1
        assert await k.directory.list(None) == []


async def test_a_release_goes_on_when_its_caller_is_cancelled() -> None:
    async with kept() as k:
        lease = await k.leases.acquire(SPEC, LANE)
        releasing = asyncio.create_task(k.leases.release(lease))
        await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.gather(releasing, return_exceptions=True)
        await k.leases.settle()
        assert await k.directory.list(None) == []
