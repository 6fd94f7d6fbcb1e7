"""Leases: one suite for both stores, the shared one against a real server."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace

import pytest
from rearview.config import DirectoryConfig
from rearview.contract.lease import Lease, LeaseRequest, Load, Owner, Quota, Usage
from rearview.control.circuit import Circuit
from rearview.directory import (
    Directory,
    DirectoryEmpty,
    DirectoryUnavailable,
    LeaseHeld,
    LeaseLost,
    MemoryDirectory,
    QuotaExceeded,
    open_directory,
)
from rearview.directory.protocol import REMEMBER_S, Limit
from rearview.errors import ConfigError, Reason
from support.stores import LEASE_S, Store

pytestmark = pytest.mark.integration

LANE = ("encode#a", "decode#b")
LOAD = Load(30.0, 30.0 * 512 * 512)
TOKEN = "ab" * 32
CLOCK_STEP_S = 5.0
"""A real server's clock goes on while a test looks at it."""


async def acquire(
    directory: Directory,
    session: str = "s",
    lane: tuple[str, ...] = LANE,
    ingress: str = "i1",
    min_epoch: int = 0,
    **wanted: object,
) -> Lease:
    request = LeaseRequest(session, **{"tenant": "t", "load": LOAD, "token_sha256": TOKEN, **wanted})  # type: ignore[arg-type]
    return await directory.acquire(request, lane, ingress, min_epoch)


async def lease_of(directory: Directory, session: str = "s") -> Lease | None:
    owner = await directory.owner_of(session)
    return owner and owner.lease


def is_close(seconds: float, expected: float) -> bool:
    return expected - 0.01 <= seconds < expected + CLOCK_STEP_S


async def test_an_acquired_lease_says_what_was_asked_for(store: Store, directory: Directory) -> None:
    before = store.now()
    lease = await acquire(directory)
    assert lease == Lease("s", "t", LANE, "i1", 1, lease.expiry_s, lease.open_time_s, LOAD, TOKEN)
    assert is_close(lease.open_time_s, before)
    assert lease.expiry_s == pytest.approx(lease.open_time_s + LEASE_S, abs=1e-6)
    assert await lease_of(directory) == lease


async def test_an_unknown_session_has_no_lease(directory: Directory) -> None:
    assert await directory.owner_of("s") is None
    assert await directory.list(None) == []
    assert await directory.leases_on("a") == []
    assert await directory.usage_by_replica() == {}


async def test_no_lease_of_another_is_acquired_however_old(store: Store, directory: Directory) -> None:
    lease = await acquire(directory)
    for _ in range(3):
        with pytest.raises(LeaseHeld) as caught:
            await acquire(directory, ingress="i2")
        assert caught.value.lease.epoch == lease.epoch
        store.advance(LEASE_S)
    renewed = await directory.renew(lease)
    assert is_close(renewed.expiry_s, store.now() + LEASE_S - CLOCK_STEP_S / 2)
    assert replace(renewed, expiry_s=lease.expiry_s) == lease


async def test_the_same_ingress_acquires_again_with_a_new_epoch(directory: Directory) -> None:
    former = await acquire(directory)
    again = await acquire(directory, lane=("c",))
    assert (again.epoch, again.lane, again.open_time_s) == (2, ("c",), former.open_time_s)
    with pytest.raises(LeaseLost) as caught:
        await directory.renew(former)
    assert caught.value.current == again


async def test_another_tenant_never_gets_the_session(store: Store, directory: Directory) -> None:
    await acquire(directory)
    store.advance(2 * LEASE_S)
    with pytest.raises(LeaseHeld):
        await acquire(directory, tenant="u")


async def test_the_epoch_exceeds_what_replicas_hold(directory: Directory) -> None:
    lease = await acquire(directory, min_epoch=41)
    assert lease.epoch == 42
    assert (await acquire(directory, min_epoch=7)).epoch == 43


async def test_a_move_compares_the_epoch_and_raises_it(directory: Directory) -> None:
    lease = await acquire(directory)
    moved = await directory.move(lease, lane=("c",), ingress="i2", min_epoch=6)
    assert moved == replace(lease, lane=("c",), ingress="i2", epoch=7, expiry_s=moved.expiry_s)
    with pytest.raises(LeaseLost) as caught:
        await directory.move(lease, lane=("d",), ingress="i3")
    assert caught.value.current == moved
    assert await lease_of(directory) == moved


async def test_of_many_takeovers_at_once_one_wins(store: Store) -> None:
    directories = [store.open() for _ in range(8)]
    lease = await acquire(directories[0], ingress="dead")
    results = await asyncio.gather(
        *(each.move(lease, lane=LANE, ingress=f"i{n}") for n, each in enumerate(directories)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Lease) for result in results) == 1
    assert sum(isinstance(result, LeaseLost) for result in results) == 7


async def test_a_released_lease_is_over_and_its_epoch_is_remembered(directory: Directory) -> None:
    lease = await acquire(directory, min_epoch=9)
    for _ in range(2):
        await directory.release(lease)
        assert await directory.owner_of("s") is None
        assert await directory.list("t") == []
    for call in (directory.renew(lease), directory.move(lease, lane=LANE, ingress="i1")):
        with pytest.raises(LeaseLost) as caught:
            await call
        assert caught.value.current is None
    assert (await acquire(directory, ingress="i2")).epoch == 11


async def test_a_release_with_a_former_epoch_changes_nothing(directory: Directory) -> None:
    former = await acquire(directory)
    lease = await acquire(directory)
    await directory.release(former)
    assert await lease_of(directory) == lease


async def test_sessions_are_listed_by_tenant_oldest_first(store: Store, directory: Directory) -> None:
    first = await acquire(directory, "s3")
    store.advance(0.01)
    await acquire(directory, "s1", tenant="u")
    store.advance(0.01)
    await acquire(directory, "s2", lane=("c",))
    # A real server's clock counts when a lease is opened: it stands still where time is made to pass.
    times = {lease.session_id: lease.open_time_s for lease in await directory.list(None)}
    order = sorted(times, key=lambda session: (times[session], session))
    await directory.renew(first)
    assert [lease.session_id for lease in await directory.list(None)] == order
    assert [lease.session_id for lease in await directory.list("t")] == [s for s in order if s != "s1"]
    assert await directory.list("nobody") == []


async def test_leases_are_found_by_replica_expired_or_not(store: Store, directory: Directory) -> None:
    lease = await acquire(directory, "s1", lane=("a", "b"))
    await acquire(directory, "s2", lane=("a", "c"))
    store.advance(LEASE_S)
    assert {each.session_id for each in await directory.leases_on("a")} == {"s1", "s2"}
    await directory.move(lease, lane=("d", "b"), ingress="i1")
    assert {each.session_id for each in await directory.leases_on("a")} == {"s2"}
    assert [each.session_id for each in await directory.leases_on("d")] == ["s1"]
    assert await directory.leases_on("e") == []


async def test_replicas_are_counted_by_the_leases_in_force(directory: Directory) -> None:
    first = await acquire(directory, "s1", lane=("a", "b"))
    second = await acquire(directory, "s2", lane=("a", "c"), load=Load(5.0, 100.0))
    both = Usage(2, Load(35.0, LOAD.pixels_per_s + 100.0))
    one, two = Usage(1, LOAD), Usage(1, Load(5.0, 100.0))
    assert await directory.usage_by_replica() == {"a": both, "b": one, "c": two}
    await directory.move(second, lane=("d", "c"), ingress="i1")
    assert await directory.usage_by_replica() == {"a": one, "b": one, "c": two, "d": two}
    await directory.release(first)
    assert await directory.usage_by_replica() == {"c": two, "d": two}
    await acquire(directory, "s2", lane=("e",), load=Load(5.0, 100.0))
    assert await directory.usage_by_replica() == {"e": two}


async def test_a_lease_that_nobody_renews_counts_until_its_expiry(store: Store, directory: Directory) -> None:
    dead = await acquire(directory, "dead", lane=("a",))
    live = await acquire(directory, "live", lane=("a",))
    store.advance(LEASE_S - CLOCK_STEP_S)
    await directory.renew(live)
    assert await directory.usage_by_replica() == {"a": Usage(2, Load(60.0, 2 * LOAD.pixels_per_s))}
    store.advance(CLOCK_STEP_S)
    assert await directory.usage_by_replica() == {"a": Usage(1, LOAD)}
    await directory.renew(dead)
    assert (await directory.usage_by_replica())["a"].sessions == 2


async def test_what_nobody_renews_is_forgotten_and_its_owner_brings_it_back(
    store: Store, directory: Directory
) -> None:
    lease = await acquire(directory, min_epoch=3)
    store.advance(REMEMBER_S)
    assert await directory.list(None) == []
    assert await directory.leases_on(LANE[0]) == []
    renewed = await directory.renew(lease)
    assert replace(renewed, expiry_s=lease.expiry_s) == lease
    assert await lease_of(directory) == renewed


async def test_names_with_separators_do_not_mix(directory: Directory) -> None:
    names = ["a:b", "a", "{a}", "a b", "ü*", "1 2 a"]
    for name in names:
        await acquire(directory, name, tenant=name, lane=(name, "x:" + name))
    assert sorted(lease.lane[0] for lease in await directory.list(None)) == sorted(names)
    for name in names:
        assert [lease.session_id for lease in await directory.list(name)] == [name]
        assert [lease.session_id for lease in await directory.leases_on(name)] == [name]
    usage = await directory.usage_by_replica()
    assert usage == {n: Usage(1, LOAD) for name in names for n in (name, "x:" + name)}


async def test_an_owner_is_found_while_it_announces_itself(store: Store, directory: Directory) -> None:
    lease = await acquire(directory)
    assert await directory.owner_of("s") == Owner(lease, None)
    assert await directory.announce("i1", "tcp://1.2.3.4:5")
    assert await directory.owner_of("s") == Owner(lease, "tcp://1.2.3.4:5")
    await directory.announce("i2", "tcp://6.7.8.9:0")
    taken = await directory.move(lease, lane=LANE, ingress="i2")
    assert await directory.owner_of("s") == Owner(taken, "tcp://6.7.8.9:0")
    store.advance(LEASE_S)
    owner = await directory.owner_of("s")
    assert owner is not None
    assert owner.address is None


# --- a store that lost what it had acknowledged


async def test_a_renewal_brings_a_store_that_fell_behind_up_to_date(
    store: Store, directory: Directory
) -> None:
    first = await acquire(directory)
    before = store.snapshot()
    taken = await directory.move(first, lane=("c",), ingress="i2")
    store.restore(before)
    assert (await directory.renew(first)).epoch == 1  # The store knows no better; replicas do.
    assert await directory.renew(taken) == await lease_of(directory)
    with pytest.raises(LeaseLost):
        await directory.renew(first)
    assert await directory.leases_on(LANE[0]) == []


async def test_an_epoch_that_was_granted_twice_belongs_to_whom_the_store_knows(
    store: Store, directory: Directory
) -> None:
    first = await acquire(directory)
    before = store.snapshot()
    lost = await directory.move(first, lane=LANE, ingress="i2")
    store.restore(before)
    other = await directory.move(first, lane=LANE, ingress="i3")
    assert lost.epoch == other.epoch
    for call in (directory.renew(lost), directory.move(lost, lane=LANE, ingress="i2")):
        with pytest.raises(LeaseLost) as caught:
            await call
        assert caught.value.current == other
    await directory.release(lost)
    assert await lease_of(directory) == other


async def test_a_release_that_was_lost_costs_a_lease_time(store: Store, directory: Directory) -> None:
    lease = await acquire(directory)
    before = store.snapshot()
    await directory.release(lease)
    store.restore(before)
    assert (await directory.usage_by_replica())[LANE[0]].sessions == 1
    store.advance(LEASE_S)
    assert await directory.usage_by_replica() == {}


# --- a store that came back empty


async def test_an_empty_store_refuses_until_what_replicas_hold_was_published(
    store: Store, directory: Directory
) -> None:
    lease = await acquire(directory, "s1", min_epoch=6)
    other = await acquire(directory, "s2", ingress="i2")
    store.flush()
    assert not await directory.announce("i1", "here")
    for call in (
        acquire(directory, "new"),
        directory.move(lease, lane=LANE, ingress="i3"),
        directory.owner_of("s1"),
        directory.list(None),
        directory.leases_on(LANE[0]),
        directory.usage_by_replica(),
        directory.claim("leader", "i1", 1.0),
        directory.claims(),
    ):
        with pytest.raises(DirectoryEmpty) as refused:
            await call
        assert (refused.value.reason, refused.value.status) == (Reason.DIRECTORY_UNAVAILABLE, "UNAVAILABLE")
        assert refused.value.retry_after_s is not None
    renewed = await directory.renew(lease)
    assert (renewed.epoch, renewed.open_time_s, renewed.token_sha256) == (7, lease.open_time_s, TOKEN)
    assert not await directory.reopen(["s1", "s2"])
    await directory.renew(other)
    assert await directory.reopen(["s1", "s2"])
    assert await directory.reopen([])
    assert await directory.announce("i1", "here")
    assert (await directory.usage_by_replica())[LANE[0]].sessions == 2
    assert (await acquire(directory, "s1", min_epoch=7)).epoch == 8


async def test_a_store_that_stays_incomplete_serves_after_a_lease_time(
    store: Store, directory: Directory
) -> None:
    store.flush()
    assert not await directory.reopen(["orphan"])
    store.advance(LEASE_S - CLOCK_STEP_S)
    assert not await directory.reopen(["orphan"])
    store.advance(CLOCK_STEP_S)
    assert await directory.reopen(["orphan"])
    assert await directory.list(None) == []


async def test_a_store_of_which_replicas_hold_nothing_serves_at_once(
    store: Store, directory: Directory
) -> None:
    store.flush()
    assert await directory.reopen([])
    assert (await acquire(directory)).epoch == 1


async def test_a_replica_publishes_what_it_holds_and_owners_go_before_it(
    store: Store, directory: Directory
) -> None:
    lease = await acquire(directory, min_epoch=6)
    store.flush()
    held = replace(lease, ingress="")
    await directory.publish([held, replace(held, session_id="s2", epoch=3)])
    assert await directory.reopen(["s", "s2"])
    published = await directory.owner_of("s")
    assert published == Owner(replace(held, expiry_s=published.lease.expiry_s), None)  # type: ignore[union-attr]
    renewed = await directory.renew(lease)
    await directory.publish([held])
    assert await lease_of(directory) == renewed
    orphan = await lease_of(directory, "s2")
    assert orphan is not None
    taken = await directory.move(orphan, lane=LANE, ingress="i2", min_epoch=3)
    assert (taken.epoch, taken.token_sha256) == (4, TOKEN)


# --- quotas


async def test_a_tenant_has_so_many_sessions_over_all_ingresses(store: Store) -> None:
    quota = Quota(2, 1e9, 1e12)
    one, other = store.open(), store.open()
    first = await acquire(one, "s1", quota=quota)
    await acquire(other, "s2", ingress="i2", quota=quota)
    for directory in (one, other):
        with pytest.raises(QuotaExceeded) as caught:
            await acquire(directory, "s3", quota=quota)
        assert (caught.value.reason, caught.value.limit) == (
            Reason.TENANT_STREAMS_EXHAUSTED,
            Limit.SESSIONS,
        )
        assert caught.value.retry_after_s is not None
        assert caught.value.metadata == {"max_streams": "2"}
    await acquire(one, "s4", tenant="u", quota=quota)
    assert await lease_of(one, "s3") is None
    await one.release(first)
    await acquire(other, "s3", quota=quota)


async def test_sessions_whose_ingress_died_leave_the_quota_when_their_leases_end(
    store: Store, directory: Directory
) -> None:
    quota = Quota(2, 1e9, 1e12)
    for session in ("s1", "s2"):
        await acquire(directory, session, ingress="dead", quota=quota)
    with pytest.raises(QuotaExceeded):
        await acquire(directory, "s3", quota=quota)
    store.advance(LEASE_S)
    await acquire(directory, "s3", quota=quota)
    await acquire(directory, "s4", quota=quota)
    with pytest.raises(QuotaExceeded):
        await acquire(directory, "s5", quota=quota)


@pytest.mark.parametrize(
    ("quota", "limit", "metadata"),
    [
        (Quota(9, 89.0, 1e12), Limit.FRAMES, {"max_frames_per_s": "89"}),
        (Quota(9, 90.0, 3 * LOAD.pixels_per_s - 1), Limit.PIXELS, {"max_pixels_per_s": "23592959"}),
    ],
)
async def test_declared_rates_are_reserved(
    directory: Directory, quota: Quota, limit: Limit, metadata: dict[str, str]
) -> None:
    for session in ("s1", "s2"):
        await acquire(directory, session, quota=quota)
    with pytest.raises(QuotaExceeded) as caught:
        await acquire(directory, "s3", quota=quota)
    assert (caught.value.limit, caught.value.reason) == (limit, Reason.TENANT_RATE_EXHAUSTED)
    assert (caught.value.status, caught.value.metadata) == ("RESOURCE_EXHAUSTED", metadata)
    await acquire(directory, "s3", load=Load(1.0, 1.0), quota=quota)


async def test_a_quota_can_be_used_to_the_last_frame(directory: Directory) -> None:
    for number in range(10):
        await acquire(directory, f"s{number}", load=Load(0.1, 0.3), quota=Quota(10, 1.0, 3.0))


async def test_a_session_that_is_acquired_again_counts_once(directory: Directory) -> None:
    for _ in range(3):
        await acquire(directory, "s1", quota=Quota(1, 30.0, LOAD.pixels_per_s))


async def test_a_parked_session_counts_for_its_tenant_and_for_no_replica(
    directory: Directory,
) -> None:
    lease = await acquire(directory, "s1", quota=Quota(1, 1e9, 1e12))
    parked = await directory.move(lease, lane=(), ingress="i1")
    assert parked.lane == ()
    assert await directory.usage_by_replica() == {}
    renewed = await directory.renew(parked)
    assert await directory.list("t") == [renewed]
    with pytest.raises(QuotaExceeded):
        await acquire(directory, "s2", quota=Quota(1, 1e9, 1e12))


# --- everything else


async def test_without_a_url_leases_live_in_memory() -> None:
    assert isinstance(open_directory(DirectoryConfig(), Circuit()), MemoryDirectory)


@pytest.mark.parametrize("url", ["http://u:secret@host", "redis://u:secret@host:port", "localhost"])
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_url") as caught:
        open_directory(DirectoryConfig(redis_url=url), Circuit())
    assert "secret" not in str(caught.value)


async def test_errors_travel_between_processes_with_what_they_carry() -> None:
    lease = Lease("s", "t", LANE, "i1", 1, 2.0, 3.0)
    held = pickle.loads(pickle.dumps(LeaseHeld(lease)))
    lost = pickle.loads(pickle.dumps(LeaseLost(lease)))
    over = pickle.loads(pickle.dumps(QuotaExceeded(Limit.FRAMES, Quota(1, 2.5, 3))))
    assert (held.lease, held.reason) == (lease, Reason.TAKEN_OVER)
    assert (lost.current, lost.reason) == (lease, Reason.TAKEN_OVER)
    assert (over.limit, over.quota, over.metadata) == (
        Limit.FRAMES,
        Quota(1, 2.5, 3),
        {"max_frames_per_s": "2.5"},
    )
    assert pickle.loads(pickle.dumps(DirectoryUnavailable())).retry_after_s == 1.0
    assert isinstance(pickle.loads(pickle.dumps(DirectoryEmpty())), DirectoryEmpty)


async def test_many_are_renewed_in_one_call_and_each_is_told_its_own(directory: Directory) -> None:
    first, other, ended = [await acquire(directory, session) for session in ("a", "b", "c")]
    moved = await directory.move(other, lane=LANE, ingress="i2")
    await directory.release(ended)
    renewed, lost, gone = await directory.renew_all([first, other, ended])
    assert isinstance(renewed, Lease)
    assert renewed == await lease_of(directory, "a")
    assert renewed.expiry_s >= first.expiry_s
    assert isinstance(lost, LeaseLost)
    assert lost.current == moved
    assert isinstance(gone, LeaseLost)
    assert gone.current is None
    assert await directory.renew_all([]) == []
