"""Claims: one leader, one taker of a spare; for both stores."""

from __future__ import annotations

import asyncio

import pytest
from rearview.contract.lease import Claim
from rearview.directory import Directory
from rearview.directory.protocol import REMEMBER_S
from support.stores import Store

pytestmark = pytest.mark.integration

TTL_S = 10.0


async def test_a_claim_has_one_owner_at_a_time(directory: Directory) -> None:
    mine = await directory.claim("leader", "i1", TTL_S)
    assert (mine.key, mine.owner) == ("leader", "i1")
    assert await directory.claim("leader", "i2", TTL_S) == mine
    assert (await directory.claim("other", "i2", TTL_S)).owner == "i2"


async def test_of_many_that_claim_a_spare_at_once_one_gets_it(store: Store) -> None:
    handles = [store.open() for _ in range(8)]
    claims = await asyncio.gather(
        *(handle.claim("spare/denoise#4", f"i{n}", TTL_S) for n, handle in enumerate(handles))
    )
    assert len({(claim.owner, claim.number) for claim in claims}) == 1


async def test_whoever_claims_again_goes_on_holding(directory: Directory) -> None:
    mine = await directory.claim("leader", "i1", TTL_S)
    again = await directory.claim("leader", "i1", TTL_S)
    assert again.number == mine.number
    assert again.expiry_s >= mine.expiry_s


async def test_a_claim_that_is_kept_stays_and_one_that_is_not_goes_to_the_next(
    store: Store, directory: Directory
) -> None:
    mine = await directory.claim("leader", "i1", TTL_S)
    for _ in range(3):
        store.advance(0.6 * TTL_S)
        kept = await directory.keep_claim(mine, TTL_S)
        assert kept is not None
        assert (kept.owner, kept.number) == (mine.owner, mine.number)
    store.advance(TTL_S)
    theirs = await directory.claim("leader", "i2", TTL_S)
    assert theirs.owner == "i2"
    assert theirs.number > mine.number
    assert await directory.keep_claim(mine, TTL_S) is None
    await directory.drop_claim(mine)
    assert await directory.claims() == [theirs]


async def test_a_late_holder_goes_on_if_nobody_came(store: Store, directory: Directory) -> None:
    mine = await directory.claim("leader", "i1", TTL_S)
    store.advance(2 * TTL_S)
    assert await directory.claims() == []
    kept = await directory.keep_claim(mine, TTL_S)
    assert kept is not None
    assert kept.number == mine.number
    assert await directory.claims() == [kept]


async def test_a_claim_that_was_dropped_is_free_and_its_number_is_not_used_again(
    directory: Directory,
) -> None:
    mine = await directory.claim("leader", "i1", TTL_S)
    await directory.drop_claim(mine)
    assert await directory.claims() == []
    assert await directory.keep_claim(mine, TTL_S) is None
    for owner in ("i2", "i1"):
        theirs = await directory.claim("leader", owner, TTL_S)
        assert theirs.owner == owner
        assert theirs.number > mine.number
        mine = theirs
        await directory.drop_claim(mine)


async def test_claims_are_listed_by_prefix(directory: Directory) -> None:
    for key in ("spare/b", "spare/a", "leader", "spar"):
        await directory.claim(key, "i1", TTL_S)
    assert [claim.key for claim in await directory.claims("spare/")] == ["spare/a", "spare/b"]
    assert [claim.key for claim in await directory.claims()] == ["leader", "spar", "spare/a", "spare/b"]


@pytest.mark.parametrize("loss", ["flush", "failover", "long time"])
async def test_numbers_grow_whatever_the_store_has_lost(
    store: Store, directory: Directory, loss: str
) -> None:
    before = store.snapshot()
    mine: Claim = await directory.claim("leader", "i1", TTL_S)
    while store.now() * 1000 <= mine.number:
        store.advance(0.001)
    match loss:
        case "flush":
            store.flush()
            assert await directory.reopen([])
        case "failover":
            store.restore(before)
        case _:
            store.advance(REMEMBER_S + TTL_S)
    assert await directory.keep_claim(mine, TTL_S) is None
    theirs = await directory.claim("leader", "i2", TTL_S)
    assert theirs.owner == "i2"
    assert theirs.number > mine.number
