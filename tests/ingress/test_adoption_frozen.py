"""An ingress that stands still with its connections open: clients leave it, and it wakes to no effect."""

from __future__ import annotations

import asyncio
import socket

import pytest
from rearview.client import Client, Dropped, DropPolicy, ImageFormat, Reconnect, Session, Translated
from rearview.errors import Reason
from rearview.v1 import translation_service_pb2 as pb
from support.frozen import freezable
from support.ingresses import crash, several
from support.raw_stream import RawStream, eventually, null_config

pytestmark = pytest.mark.integration

QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.02)


@pytest.fixture(autouse=True)
def speaks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("stream", "voice"):
        monkeypatch.setattr(f"rearview.ingress.{module}.HEARTBEAT_S", 0.2)


async def send(session: Session, numbers: range) -> None:
    for number in numbers:
        await session.send(b"%d" % number, format=ImageFormat.OPAQUE)


async def read(session: Session, count: int) -> list[tuple[int, bytes]]:
    pictures: list[tuple[int, bytes]] = []
    while len(pictures) < count:
        answer = await anext(session)
        assert not isinstance(answer, Dropped), answer
        if isinstance(answer, Translated):
            pictures.append((answer.frame_index, answer.data))
    return pictures


def expected(numbers: range) -> list[tuple[int, bytes]]:
    return [(number, b"%d" % number) for number in numbers]


async def test_a_client_leaves_an_ingress_that_has_frozen_and_it_wakes_to_no_effect() -> None:
    async with several(1) as service, freezable(service) as frozen:
        addresses = [frozen.server.address, service.addresses[0]]
        async with (
            Client(addresses, reconnect=QUICK) as client,
            client.open(prompt="a", drop_policy=DropPolicy.LOSSLESS) as session,
        ):
            await send(session, range(3))
            assert await read(session, 3) == expected(range(3))
            await frozen.freeze()
            reading = asyncio.create_task(read(session, 3))
            await send(session, range(3, 6))  # Read by nobody.
            assert await reading == expected(range(3, 6))
            assert session.num_connections == 2
            frozen.thaw()  # It reads what was sent to it, and is fenced.
            await eventually(lambda: len(frozen.ingress.sessions) == 0)
            await send(session, range(6, 9))
            assert await read(session, 3) == expected(range(6, 9))
            assert session.num_connections == 2
            await session.finish()
            assert [each async for each in session] == []
        await eventually(lambda: service.stages[0].num_sessions == 0)
        assert await service.directory.list(None) == []


async def test_an_ingress_that_wakes_up_gives_the_session_to_whoever_has_it_now() -> None:
    """Its client comes back to it before it has heard that another one took the session meanwhile."""
    async with several(1) as service, freezable(service) as frozen:
        first, second = frozen.server.address, service.addresses[0]
        async with (
            Client([first, second, first], reconnect=QUICK) as client,
            client.open(prompt="a", drop_policy=DropPolicy.LOSSLESS) as session,
        ):
            await send(session, range(2))
            assert await read(session, 2) == expected(range(2))
            await frozen.freeze()
            await eventually(lambda: session.num_connections == 2)
            await send(session, range(2, 4))
            assert await read(session, 2) == expected(range(2, 4))
            frozen.thaw()
            for record in service.ingresses[0].sessions:
                service.ingresses[0].sessions.detach(record, record.stream)
            await service.servers[0]._server.stop(None)
            await send(session, range(4, 6))
            assert await read(session, 2) == expected(range(4, 6))
            assert session.opened.session_id in frozen.ingress.sessions


async def test_an_idle_stream_is_spoken_to_and_ends_idle_all_the_same() -> None:
    config = null_config(ingress={"idle_timeout_s": 1.0})
    async with several(1, config) as service, RawStream(service.addresses[0]) as stream:
        opened = await stream.start()
        assert opened.heartbeat.ToMilliseconds() == 200
        end = await stream.read_to_end()
        assert end.reason is Reason.IDLE
        notices = [response.notice.kind for response in stream.received[1:]]
        assert set(notices) == {pb.Notice.KIND_CREDIT}
        assert len(notices) >= 2


async def test_behind_one_port_a_new_connection_finds_the_ingress_that_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shared = {"redis_url": "redis://127.0.0.1:1"}  # The test's directory is used in its place.
    config = null_config(ingress={"port": port, "replicas": 2}, directory=shared)
    async with several(2, config) as service:
        assert service.addresses == [f"127.0.0.1:{port}"] * 2
        async with (
            Client(service.addresses[0], reconnect=QUICK) as client,
            client.open(prompt="a", drop_policy=DropPolicy.LOSSLESS) as session,
        ):
            await send(session, range(3))
            assert await read(session, 3) == expected(range(3))
            owner = next(n for n in (0, 1) if session.opened.session_id in service.ingresses[n].sessions)
            await crash(service.servers[owner])
            await send(session, range(3, 6))
            assert await read(session, 3) == expected(range(3, 6))
            assert session.opened.session_id in service.ingresses[1 - owner].sessions
