"""What a session declares may change while it lives: one suite for both stores."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.lease import UNLIMITED, Lease, LeaseRequest, Load, Quota, Usage
from rearview.directory import Directory, LeaseLost, QuotaExceeded
from rearview.directory.protocol import Limit

pytestmark = pytest.mark.integration

LOAD = Load(30.0, 30.0 * 512 * 512)


async def acquire(directory: Directory, session: str = "s", quota: Quota = UNLIMITED) -> Lease:
    wanted = LeaseRequest(session, "t", LOAD, quota, "ab" * 32)
    return await directory.acquire(wanted, ("encode#a", "decode#b"), "i1")


async def lease_of(directory: Directory) -> Lease | None:
    owner = await directory.owner_of("s")
    return owner and owner.lease


async def test_a_lease_is_charged_another_load_under_its_epoch(directory: Directory) -> None:
    quota = Quota(2, 60.0, 2 * LOAD.pixels_per_s)
    lease, more = await acquire(directory, quota=quota), Load(30.0, 2 * LOAD.pixels_per_s)
    charged = await directory.charge(lease, more, quota)
    assert charged == replace(lease, load=more, expiry_s=charged.expiry_s)
    assert await lease_of(directory) == charged
    assert (await directory.usage_by_replica())["encode#a"] == Usage(1, more)
    with pytest.raises(QuotaExceeded):
        await acquire(directory, "other", quota=quota)
    await directory.charge(charged, LOAD, quota)
    await acquire(directory, "other", quota=quota)


async def test_a_load_beyond_the_quota_is_not_charged_and_less_always_is(directory: Directory) -> None:
    lease = await acquire(directory)
    await acquire(directory, "other")
    tight = Quota(1, 30.0, 1.5 * LOAD.pixels_per_s)
    for load in (Load(30.0, LOAD.pixels_per_s + 1), Load(31.0, 1.0)):
        with pytest.raises(QuotaExceeded):
            await directory.charge(lease, load, tight)
        assert (await directory.usage_by_replica())["encode#a"] == Usage(2, Load(60.0, 2 * LOAD.pixels_per_s))
    less = Load(30.0, LOAD.pixels_per_s / 2)
    assert (await directory.charge(lease, less, tight)).load == less
    with pytest.raises(QuotaExceeded) as caught:
        await directory.charge(lease, LOAD, Quota(2, 60.0, LOAD.pixels_per_s))
    assert caught.value.limit is Limit.PIXELS


async def test_only_its_own_ingress_charges_a_session_also_after_a_move(directory: Directory) -> None:
    lease, more = await acquire(directory), Load(30.0, 1e9)
    moved = await directory.move(lease, lane=("c",), ingress="i1")
    charged = await directory.charge(lease, more, UNLIMITED)
    assert charged == replace(moved, load=more, expiry_s=charged.expiry_s)
    taken = await directory.move(charged, lane=("c",), ingress="i2")
    with pytest.raises(LeaseLost) as caught:
        await directory.charge(charged, LOAD, UNLIMITED)
    assert caught.value.current == taken
    await directory.release(taken)
    with pytest.raises(LeaseLost):
        await directory.charge(taken, LOAD, UNLIMITED)
