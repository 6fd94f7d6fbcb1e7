"""Ingresses that share a directory: what they count, and what happens when Redis or one of them goes."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from rearview.contract.lease import LeaseRequest
from rearview.directory import Directory
from rearview.errors import Reason
from rearview.ingress.server import IngressServer
from rearview.ingress.service import Ingress
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.owner import Owner, spec
from support.raw_stream import End, RawStream, assert_nothing_held, eventually, running
from support.service import InProcessService
from support.stores import RedisStore
from support.valkey import Server

pytestmark = pytest.mark.integration

LEASE_S = 6.0
UNKNOWN_S, KNOWN_S, LOADED_MACHINE_S = 1.0, 0.1, 1.0
SLOTS = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A Redis that the test may stop."""
    found = Server(tmp_path)
    found.start()
    yield found
    found.stop()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[RedisStore]:
    """What the service keeps there."""
    found = RedisStore(server.url, LEASE_S)
    found.flush()
    yield found
    await found.close()


@asynccontextmanager
async def serving(store: RedisStore, **sections: Any) -> AsyncIterator[InProcessService]:
    directory = {"redis_url": store.url, "lease_s": LEASE_S, "key_prefix": store.prefix}
    async with running(directory=directory, slots=SLOTS, **sections) as service:
        yield service


@asynccontextmanager
async def second_ingress(service: InProcessService) -> AsyncIterator[IngressServer]:
    """Another ingress of the service, with a port of its own."""
    server = IngressServer(
        Ingress(service.config, f"ingress#{len(service.servers)}", "node", service.members)
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def opening(address: str, token: str | None = None, **fields: Any) -> tuple[End, float]:
    """How an open that is refused ends, and after how many seconds."""
    async with RawStream(address, token) as stream:
        await stream.call.wait_for_connection()
        started_s = time.monotonic()
        await stream.write(
            pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"), **fields))
        )
        end = await stream.read_to_end()
        return end, time.monotonic() - started_s


def assert_away(end: End) -> None:
    assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DIRECTORY_UNAVAILABLE)
    assert end.retry_after_s is not None


async def may_open(address: str) -> bool:
    async with RawStream(address) as stream:
        await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))))
        return await stream.read() is not None


# --- Redis goes


@pytest.mark.parametrize("harm", ["dead", "frozen"])
async def test_opens_are_refused_soon_while_redis_is_away_and_live_streams_go_on(
    server: Server, store: RedisStore, harm: str
) -> None:
    async with serving(store) as service, RawStream(service.address) as live:
        await live.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        assert server.process is not None
        if harm == "dead":
            server.stop()
        else:
            server.process.send_signal(signal.SIGSTOP)
        end, after_s = await opening(service.address)
        assert_away(end)
        assert after_s < UNKNOWN_S + LOADED_MACHINE_S
        waits = []
        for number in range(10):
            end, after_s = await opening(service.address)
            assert_away(end)
            waits.append(after_s)
            await live.frame(number)
            await live.read_answers(1)
        assert sorted(waits)[len(waits) // 2] < KNOWN_S, waits
        if harm == "dead":
            server.start()
        else:
            server.process.send_signal(signal.SIGCONT)
        await eventually(lambda: may_open(service.address))
        await live.frame(99)
        await live.read_answers(1)
        owner = await service.directory.owner_of(live.opened.session_id)
        assert owner is not None
        assert owner.lease.epoch == 1


@pytest.mark.parametrize("option", ["maxmemory", "min-replicas-to-write"])
async def test_leases_are_renewed_again_after_redis_refused_to_write(store: RedisStore, option: str) -> None:
    async with serving(store) as service, RawStream(service.address) as live:
        opened = await live.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        record = service.sessions[opened.session_id]
        store.client.config_set(option, 1)
        end, _ = await opening(service.address)
        assert_away(end)
        away = service.directory._connection  # type: ignore[attr-defined]
        await eventually(lambda: away._circuit.failures >= 3)
        store.client.config_set(option, 0)
        healed_s = store.now()
        await eventually(lambda: record.session.lease.expiry_s >= healed_s + LEASE_S)
        await live.frame(0)
        await live.read_answers(1)


async def is_reached(directory: Directory, session_id: str) -> bool:
    """Whether the directory knows where the session's ingress is: replicas cannot tell it that."""
    owner = await directory.owner_of(session_id)
    return owner is not None and owner.address is not None


async def test_a_directory_that_came_back_empty_serves_once_it_was_told(
    store: RedisStore,
) -> None:
    async with (
        serving(store) as service,
        second_ingress(service) as second,
        RawStream(service.address) as one,
        RawStream(second.address) as other,
    ):
        opened = [await one.start(), await other.start()]
        store.flush()
        end, _ = await opening(service.address)
        assert_away(end)
        await eventually(lambda: may_open(service.address))
        directory = service.directory
        names = ("ingress#0", f"ingress#{len(service.servers)}")
        for session, ingress in zip(opened, names, strict=True):
            owner = await directory.owner_of(session.session_id)
            assert owner is not None
            assert (owner.lease.ingress, owner.lease.epoch) == (ingress, 1)
            token = hashlib.sha256(session.resume_token.encode()).hexdigest()
            assert owner.lease.token_sha256 == token
            await eventually(partial(is_reached, directory, session.session_id))
        for stream in (one, other):
            await stream.frame(1)
            await stream.read_answers(1)


# --- an ingress goes


async def test_the_slots_of_an_ingress_that_died_are_free_when_its_leases_end(store: RedisStore) -> None:
    async with serving(store) as service:
        (stage,) = service.stages
        lane = (stage.describe()["replica_id"],)
        leases, dead = store.open(), Owner(service.config)
        await dead.start([stage])
        for session in [spec() for _ in range(SLOTS)]:
            await leases.acquire(LeaseRequest(session.session_id, "local"), lane, "dead")
            assert await dead.open(session) is None
        await dead.stop()
        await eventually(lambda: len(stage.describe()["orphans"]) == SLOTS)
        end, _ = await opening(service.address)  # Another ingress may still adopt them.
        assert end.reason is Reason.NO_CAPACITY
        store.advance(LEASE_S)
        streams = [RawStream(service.address) for _ in range(SLOTS)]
        for stream in streams:
            await stream.start()
        for stream in streams:
            await stream.__aexit__()


async def test_closes_that_redis_did_not_hear_of_cost_no_more_than_a_lease_time(
    server: Server, store: RedisStore
) -> None:
    async with serving(store, ingress={"resume_grace_s": 0.0}) as service:
        for _ in range(SLOTS):
            async with RawStream(service.address) as stream:
                await stream.start()
        await eventually(lambda: len(service.sessions) == 0)
        for ingress in service.ingresses:
            await ingress._leases.settle()
        streams = [RawStream(service.address) for _ in range(SLOTS)]
        for stream in streams:
            await stream.start()
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        for stream in streams:
            await stream.__aexit__()
        await eventually(lambda: len(service.sessions) == 0)
        for ingress in service.ingresses:
            await ingress._leases.settle()
        server.process.send_signal(signal.SIGCONT)
        store.advance(LEASE_S)
        for _ in service.ingresses:  # They are called in turn, and each finds the directory again by itself.
            await eventually(lambda: may_open(service.address))
        streams = [RawStream(service.address) for _ in range(SLOTS)]
        for stream in streams:  # One may be free because its close was heard.
            await stream.start()
        for stream in streams:
            await stream.__aexit__()


# --- tenants


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    """alpha: two sessions that declare up to 60 frames/s; beta: as it comes. Tokens: their names."""
    limits: dict[str, dict[str, float]] = {"alpha": {"max_streams": 2, "max_frames_per_s": 60}, "beta": {}}
    content = [
        {"name": name, "token_sha256": hashlib.sha256(name.encode()).hexdigest(), **own}
        for name, own in limits.items()
    ]
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.two_ingresses
async def test_a_tenant_that_opens_and_cuts_holds_what_it_may_and_no_other_pays_for_it(
    tenants: Path,
) -> None:
    async with running(tenants_file=str(tenants), slots=SLOTS) as service:
        async with RawStream(service.address, "beta") as other:
            promised = await other.start()
        await eventually(lambda: service.sessions[promised.session_id].stream is None)
        most = 0
        for _ in range(40):
            async with RawStream(service.address, "alpha") as stream:
                settings = settings_pb2.Settings(prompt="a")
                await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings)))
                await stream.read()
            held = [r for r in service.sessions if r.session.tenant.name == "alpha"]
            most = max(most, len(held))
        assert most == 2
        async with RawStream(service.address, "beta") as back:
            await back.resume(promised, 0)
            await back.frame(0)
            await back.read_answers(1)


@pytest.mark.two_ingresses
@pytest.mark.parametrize("is_parked", [False, True], ids=["in its lane", "parked"])
async def test_a_tenants_own_session_that_nobody_feeds_makes_room(tenants: Path, is_parked: bool) -> None:
    async with running(tenants_file=str(tenants)) as service:
        fed = RawStream(service.address, "alpha")
        await fed.start()
        async with RawStream(service.address, "alpha") as cut:
            lost = await cut.start()
        record = service.sessions[lost.session_id]
        await eventually(lambda: record.stream is None)
        if is_parked:
            await eventually(lambda: not record.session.feed.is_attached)
        async with RawStream(service.address, "alpha") as third:
            await third.start()
            assert await service.directory.owner_of(lost.session_id) is None
            end, _ = await opening(service.address, "alpha")
            assert (end.code, end.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                Reason.TENANT_STREAMS_EXHAUSTED,
            )
        await fed.__aexit__()


async def test_no_session_of_another_tenant_makes_room_when_all_slots_are_taken(tenants: Path) -> None:
    async with running(tenants_file=str(tenants), slots=1) as service:
        async with RawStream(service.address, "beta") as cut:
            promised = await cut.start()
        await eventually(lambda: service.sessions[promised.session_id].stream is None)
        end, _ = await opening(service.address, "alpha")
        assert end.reason is Reason.NO_CAPACITY
        async with RawStream(service.address, "beta") as back:
            await back.resume(promised, 0)


async def test_a_tenant_has_its_quota_once_over_all_ingresses(store: RedisStore, tenants: Path) -> None:
    async with (
        serving(store, tenants_file=str(tenants)) as service,
        second_ingress(service) as second,
        RawStream(service.address, "alpha") as one,
        RawStream(second.address, "alpha") as other,
    ):
        await one.start()
        await other.start(frame_rate=20.0)
        for address in (service.address, second.address):
            end, _ = await opening(address, "alpha", frame_rate=1.0)
            assert end.reason is Reason.TENANT_STREAMS_EXHAUSTED
            assert end.retry_after_s is not None
        await other.half_close()
        assert (await other.read_to_end()).code is grpc.StatusCode.OK
        end, _ = await opening(service.address, "alpha", frame_rate=31.0)
        assert (end.code, end.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            Reason.TENANT_RATE_EXHAUSTED,
        )
        assert end.metadata == {"max_frames_per_s": "60"}
        async with RawStream(second.address, "alpha") as again:
            await again.start(frame_rate=30.0)


async def test_an_orderly_stop_leaves_no_lease(store: RedisStore) -> None:
    async with serving(store) as service, RawStream(service.address) as stream:
        await stream.start()
        await stream.half_close()
        await stream.read_to_end()
        await assert_nothing_held(service)
