"""What only a directory in Redis can meet: servers that are dead, frozen, read-only, full, empty or slow."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import redis
from rearview.config import DirectoryConfig
from rearview.contract.lease import Lease, LeaseRequest
from rearview.control.circuit import Circuit
from rearview.directory import Directory, DirectoryEmpty, DirectoryUnavailable, open_directory
from rearview.directory.redis_store import RedisDirectory
from support.raw_stream import eventually
from support.stores import RedisStore
from support.valkey import Server

pytestmark = pytest.mark.integration

UNKNOWN_S, KNOWN_S = 1.0, 0.1
"""How soon an open must be refused: while it is not known that Redis is away, and then."""
LOADED_MACHINE_S = 1.0
"""Other work may hold the machine for so long."""


async def acquire(directory: Directory, session: str = "s", lane: tuple[str, ...] = ("a",)) -> Lease:
    return await directory.acquire(LeaseRequest(session, "t"), lane, "i1")


@pytest.fixture
async def own_store(own_server: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore(own_server.url)
    yield store
    await store.close()


async def refused_after_s(call: Callable[[], Awaitable[object]]) -> float:
    started_s = time.monotonic()
    with pytest.raises(DirectoryUnavailable) as refused:
        await call()
    assert not isinstance(refused.value, DirectoryEmpty)
    assert refused.value.status == "UNAVAILABLE"
    assert refused.value.retry_after_s is not None
    return time.monotonic() - started_s


async def serves(directory: Directory) -> bool:
    try:
        await directory.list(None)
    except DirectoryEmpty:
        return True
    except DirectoryUnavailable:
        return False
    return True


async def check_that_it_is_away(directory: Directory) -> None:
    """The first call finds out, the others know."""
    assert await refused_after_s(lambda: acquire(directory, "s1")) < UNKNOWN_S + LOADED_MACHINE_S
    waits = sorted([await refused_after_s(lambda: acquire(directory, "s2")) for _ in range(20)])
    assert waits[len(waits) // 2] < KNOWN_S
    assert waits[-1] < KNOWN_S + LOADED_MACHINE_S


async def test_a_dead_server_is_known_and_used_again_when_it_is_back(
    own_server: Server, own_store: RedisStore
) -> None:
    directory = own_store.open()
    lease = await acquire(directory)
    own_server.stop()
    await check_that_it_is_away(directory)
    own_server.start()
    await eventually(lambda: serves(directory))
    with pytest.raises(DirectoryEmpty):
        await acquire(directory, "s2")
    assert (await directory.renew(lease)).epoch == lease.epoch
    assert await directory.reopen(["s"])
    assert (await acquire(directory, "s2")).epoch == 1


async def test_a_frozen_server_is_known_and_used_again_when_it_goes_on(
    own_server: Server, own_store: RedisStore
) -> None:
    directory = own_store.open()
    lease = await acquire(directory)
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGSTOP)
    try:
        await check_that_it_is_away(directory)
    finally:
        own_server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: serves(directory))
    assert (await directory.renew(lease)).epoch == lease.epoch


async def test_many_calls_that_meet_a_frozen_server_all_end_in_time(
    own_server: Server, own_store: RedisStore
) -> None:
    directory = own_store.open()
    await acquire(directory)
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGSTOP)
    started_s = time.monotonic()
    calls = [acquire(directory, f"s{number}") for number in range(200)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - started_s < UNKNOWN_S + LOADED_MACHINE_S
    assert {type(result) for result in results} == {DirectoryUnavailable}
    own_server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: serves(directory))


def lose_disk(client: redis.Redis, folder: Path) -> None:
    shutil.rmtree(folder)
    client.config_set("save", "1 1")
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.01)


ILLS: dict[str, tuple[Callable[[redis.Redis, Path], object], Callable[[redis.Redis, Path], object]]] = {
    "MISCONF": (lose_disk, lambda client, _: client.config_set("save", "")),
    "OOM": (
        lambda client, _: client.config_set("maxmemory", 1),
        lambda client, _: client.config_set("maxmemory", 0),
    ),
    "READONLY": (
        lambda client, _: client.replicaof("127.0.0.1", "1"),
        lambda client, _: client.replicaof("NO", "ONE"),
    ),
    "NOREPLICAS": (
        lambda client, _: client.config_set("min-replicas-to-write", 1),
        lambda client, _: client.config_set("min-replicas-to-write", 0),
    ),
}


@pytest.mark.parametrize("ill", ILLS)
async def test_a_server_that_cannot_write_is_away_until_it_is_mended(
    own_server: Server, own_store: RedisStore, tmp_path: Path, ill: str
) -> None:
    harm, mend = ILLS[ill]
    directory = own_store.open()
    lease = await acquire(directory)
    harm(own_store.client, tmp_path)
    with pytest.raises(redis.RedisError):
        own_store.client.set("x", "1")
    await check_that_it_is_away(directory)
    await refused_after_s(lambda: directory.renew(lease))
    mend(own_store.client, tmp_path)
    await eventually(lambda: serves(directory))
    assert (await directory.renew(lease)).epoch == lease.epoch


async def test_what_makes_no_sense_is_a_bug_and_not_the_server_away(redis_store: RedisStore) -> None:
    directory = redis_store.open()
    redis_store.client.set(f"{{{redis_store.prefix}}}:lease:s", "not a hash")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        await acquire(directory)
    assert (await acquire(directory, "s2")).epoch == 1


async def test_a_call_that_is_sent_twice_is_done_once(redis_store: RedisStore) -> None:
    directory = redis_store.open()
    assert isinstance(directory, RedisDirectory)

    def sending_twice(script: object) -> Callable[..., Awaitable[object]]:
        async def send(**call: object) -> object:
            await script(**call)  # type: ignore[operator]
            return await script(**call)  # type: ignore[operator]

        return send

    directory._scripts = {name: sending_twice(script) for name, script in directory._scripts.items()}  # type: ignore[misc]
    lease = await acquire(directory)
    moved = await directory.move(lease, lane=("c",), ingress="i2")
    renewed = await directory.renew(moved)
    assert (lease.epoch, moved.epoch, renewed.epoch) == (1, 2, 2)
    await directory.release(renewed)
    assert await directory.owner_of("s") is None
    claim = await directory.claim("leader", "i1", 5.0)
    assert await directory.keep_claim(claim, 5.0) is not None


async def test_connections_that_a_server_closed_cost_nothing(redis_store: RedisStore) -> None:
    directory = redis_store.open()
    await acquire(directory)
    for number in range(5):
        redis_store.client.client_kill_filter(_type="normal", skipme=True)
        assert (await acquire(directory, f"s{number}")).epoch == 1


async def test_a_cancelled_call_leaves_nothing_for_the_next_one(redis_store: RedisStore) -> None:
    directory = redis_store.open()
    for number in range(50):
        calls = [asyncio.create_task(acquire(directory, f"s{number}")) for _ in range(2)]
        await asyncio.sleep(0.0001 * (number % 10))
        calls[0].cancel()
        await asyncio.wait(calls)
        assert (await calls[1]).session_id == f"s{number}"


async def test_every_key_but_the_incarnation_has_a_time_to_live(redis_store: RedisStore) -> None:
    directory = redis_store.open()
    first = await acquire(directory, "s1")
    await directory.move(await acquire(directory, "s2"), lane=("d",), ingress="i2")
    await directory.release(first)
    await directory.announce("i1", "here")
    await directory.claim("leader", "i1", 5.0)
    lives = {key.rpartition("}:")[2]: redis_store.client.pttl(key) for key in redis_store.stored()}
    assert lives.pop("incarnation") == -1
    assert len(lives) >= 8
    assert all(0 < left_ms <= 400_000 for left_ms in lives.values()), lives


async def test_what_a_thousand_sessions_leave_is_bounded_and_goes(redis_store: RedisStore) -> None:
    directory = redis_store.open()
    for number in range(1000):
        await directory.release(await acquire(directory, f"s{number}"))
    assert await directory.list(None) == []
    redis_store.client.delete(*redis_store.client.scan_iter(f"{{{redis_store.prefix}}}:lease:*"))
    left = {key.rpartition("}:")[2] for key in redis_store.stored()}
    assert left <= {"incarnation", "replicas"}


async def test_index_entries_of_vanished_sessions_are_pruned(redis_store: RedisStore) -> None:
    directory = redis_store.open()
    await acquire(directory, "dead")
    redis_store.client.delete(f"{{{redis_store.prefix}}}:lease:dead")
    assert await directory.list(None) == []
    for key in redis_store.stored():
        if redis_store.client.type(key) == "zset":
            for member in redis_store.client.zrange(key, 0, -1):
                redis_store.client.zincrby(key, -1e6, member)
    await acquire(directory, "live")
    assert redis_store.client.zcard(f"{{{redis_store.prefix}}}:replica:a") == 1


async def test_services_with_prefixes_of_their_own_share_a_server(own_server: Server) -> None:
    one, other = (
        open_directory(DirectoryConfig(redis_url=own_server.url, key_prefix=prefix), Circuit())
        for prefix in ("one", "other")
    )
    assert await one.reopen([])
    await acquire(one)
    with pytest.raises(DirectoryEmpty):
        await other.list(None)
    assert await other.reopen([])
    assert await other.list(None) == []
    await one.close()
    await other.close()
