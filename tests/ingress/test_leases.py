"""Leases of an ingress against a directory that is slow, away, empty or another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from rearview.contract.lease import UNLIMITED, Lease, LeaseRequest, Load, Quota
from rearview.directory.memory import MemoryDirectory
from rearview.directory.protocol import MAX_RENEWED, DirectoryUnavailable, LeaseLost
from rearview.errors import RearviewError, Reason
from rearview.ingress.leases import Leases
from support.raw_stream import eventually

pytestmark = pytest.mark.unit

LANE = ("a", "b")
LEASE_S = 0.15
WANTED = LeaseRequest("s", "t")


class Moody(MemoryDirectory):
    """Waits before it grants, or does not answer at all."""

    def __init__(self, lease_s: float) -> None:
        super().__init__(lease_s=lease_s)
        self.open = asyncio.Event()
        self.open.set()
        self.is_away = False
        self.is_broken = False
        self.refused = 0
        self.renewed: list[int] = []
        """Leases of each call."""

    async def acquire(self, *args: object, **kwargs: object) -> Lease:
        await self.open.wait()
        self._check()
        return await super().acquire(*args, **kwargs)  # type: ignore[arg-type]

    async def renew_all(self, leases: Sequence[Lease]) -> Sequence[Lease | LeaseLost]:
        self.renewed.append(len(leases))
        return await super().renew_all(leases)

    async def renew(self, lease: Lease) -> Lease:
        self._check()
        return await super().renew(lease)

    async def release(self, lease: Lease) -> None:
        self._check()
        await super().release(lease)

    def come_back_empty(self) -> None:
        self._entries.clear()
        self._is_open = False

    def _check(self) -> None:
        if self.is_broken:
            self.refused += 1
            raise KeyError("x")
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
    held: dict[str, Lease | None] = field(default_factory=dict)
    """Sessions that replicas hold, of whatever ingress, and leases that they know."""

    async def keep(self) -> Lease:
        lease = await self.leases.acquire(WANTED, LANE)
        self.leases.keep(lease)
        return lease


@asynccontextmanager
async def kept(lease_s: float = LEASE_S) -> AsyncIterator[Kept]:
    found: list[Kept] = []
    directory = Moody(lease_s)

    def on_taken(session_id: str, why: RearviewError) -> None:
        found[0].taken.append((session_id, why.reason))

    async def held() -> Mapping[str, Lease | None]:
        return found[0].held

    leases = Leases(
        directory,
        "i1",
        lease_s,
        on_granted=lambda lease: found[0].granted.append(lease),
        on_taken=on_taken,
        held=held,
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


async def test_renewal_goes_on_after_an_error_that_nobody_foresaw() -> None:
    async with kept() as k:
        await k.keep()
        k.directory.is_broken = True
        await eventually(lambda: k.directory.refused >= 2)
        told = len(k.granted)
        k.directory.is_broken = False
        await eventually(lambda: len(k.granted) > told)
        assert k.taken == []


async def test_a_lease_that_the_directory_forgot_is_there_again_under_its_epoch() -> None:
    async with kept() as k:
        lease = await k.keep()
        k.directory._entries.clear()
        await eventually(lambda: "s" in k.directory._entries)
        assert k.directory._entries["s"].epoch == lease.epoch
        assert k.taken == []


async def test_a_load_is_charged_to_a_lease_that_the_directory_forgot() -> None:
    async with kept(60.0) as k:
        lease, more = await k.keep(), Load(5.0, 9e6)
        k.directory._entries.clear()
        await k.leases.charge("s", more, UNLIMITED)
        (told,) = await k.directory.list(None)
        assert (told.epoch, told.load) == (lease.epoch, more)
        assert [each.load for each in k.granted] == [more]
        k.leases.let_go("s")
        await k.leases.settle()
        with pytest.raises(LeaseLost):
            await k.leases.charge("s", more, UNLIMITED)


async def test_a_moved_lease_has_the_load_that_was_charged_meanwhile() -> None:
    async with kept(60.0) as k:
        lease, more = await k.keep(), Load(5.0, 9e6)
        asked = k.directory.move

        async def move(*args: object, **how: object) -> Lease:
            answered = await asked(*args, **how)  # type: ignore[arg-type]
            await k.leases.charge("s", more, UNLIMITED)
            return answered

        k.directory.move = move  # type: ignore[method-assign]
        assert (await k.leases.move(lease, ("elsewhere",))).load == more


async def test_a_directory_that_came_back_empty_is_told_at_once_by_an_open_that_it_refuses() -> None:
    async with kept(lease_s=30.0) as k:
        await k.keep()
        k.held = {"s": None}
        await eventually(lambda: k.leases._announce_due_s > 0)  # Else it would find out by itself.
        k.directory.come_back_empty()
        with pytest.raises(DirectoryUnavailable):
            await k.leases.usage_by_replica()
        await eventually(lambda: k.directory._is_open)
        (lease,) = await k.directory.list(None)
        assert (lease.session_id, lease.epoch) == ("s", 1)


async def test_an_empty_directory_waits_for_the_sessions_of_other_ingresses() -> None:
    async with kept() as k:
        lease = await k.keep()
        k.held = {"s": None, "theirs": None}
        k.directory._lease_s = 30.0
        k.directory.come_back_empty()
        await eventually(lambda: "s" in k.directory._entries)
        told = len(k.granted)
        await eventually(lambda: len(k.granted) > told + 3)
        assert not k.directory._is_open
        await k.directory.renew(replace(lease, session_id="theirs", ingress="i2"))
        await eventually(lambda: k.directory._is_open)


async def test_an_empty_directory_is_told_what_only_replicas_know() -> None:
    async with kept() as k:
        lease = await k.keep()
        theirs = replace(lease, session_id="theirs", ingress="dead", epoch=7)
        k.held = {"s": replace(lease, ingress=""), "theirs": theirs}
        k.directory._lease_s = 30.0
        k.directory.come_back_empty()
        await eventually(lambda: k.directory._is_open)
        known = {each.session_id: (each.ingress, each.epoch) for each in await k.directory.list(None)}
        assert known == {"s": ("i1", 1), "theirs": ("dead", 7)}
        assert k.taken == []


async def test_a_lease_of_a_session_that_has_ended_is_not_told_again() -> None:
    async with kept() as k:
        await k.keep()
        k.directory.come_back_empty()
        k.leases.let_go("s")
        await eventually(lambda: k.directory._is_open)
        await k.leases.settle()
        assert await k.directory.list(None) == []


async def test_what_ended_before_an_open_began_does_not_count_against_it() -> None:
    async with kept() as k:
        await k.keep()
        releasing = k.directory.release

        async def slow(lease: Lease) -> None:
            await asyncio.sleep(0.05)
            await releasing(lease)

        k.directory.release = slow  # type: ignore[method-assign]
        k.leases.let_go("s")
        one = Quota(1, 1e9, 1e12)
        await k.leases.acquire(LeaseRequest("s2", "t", quota=one), LANE)


async def test_a_session_that_its_own_ingress_moves_meanwhile_goes_on() -> None:
    async with kept() as k:
        lease = await k.keep()
        moved = await k.directory.move(lease, lane=("c", "d"), ingress="i1")
        await eventually(lambda: k.granted != [] and k.granted[-1].epoch == moved.epoch)
        assert k.granted[-1].lane == moved.lane
        assert k.taken == []


async def test_another_ingress_that_takes_the_session_is_told_once() -> None:
    async with kept() as k:
        lease = await k.keep()
        await k.directory.move(lease, lane=LANE, ingress="i2")
        await eventually(lambda: k.taken == [("s", Reason.TAKEN_OVER)])
        k.leases.let_go("s")
        await asyncio.sleep(LEASE_S)
        assert len(k.taken) == 1
        (left,) = await k.directory.list(None)
        assert left.ingress == "i2"


async def test_a_lease_that_nobody_waits_for_any_more_is_released_when_it_comes() -> None:
    async with kept() as k:
        k.directory.open.clear()
        asking = asyncio.create_task(k.leases.acquire(WANTED, LANE))
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
        lease = await k.leases.acquire(WANTED, LANE)
        releasing = asyncio.create_task(k.leases.release(lease))
        await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.gather(releasing, return_exceptions=True)
        await k.leases.settle()
        assert await k.directory.list(None) == []


async def test_leases_that_are_due_together_are_renewed_together() -> None:
    async with kept(lease_s=1.5) as k:
        for number in range(2 * MAX_RENEWED):
            k.leases.keep(await k.leases.acquire(replace(WANTED, session_id=f"s{number}"), LANE))
        await eventually(lambda: len(k.granted) >= 6 * MAX_RENEWED)
        assert max(k.directory.renewed) <= MAX_RENEWED
        assert len(k.directory.renewed) < len(k.granted) / 2
