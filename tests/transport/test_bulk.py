"""Much at a time over a connection of its own: whole, bounded at both ends, and refused with a reason."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from rearview.config import LinkConfig
from rearview.errors import NotFound, RearviewError, Reason, Refused
from rearview.transport import bulk
from rearview.transport.bulk import PART_BYTES, Source, pull, serve
from rearview.transport.codec import Versions
from rearview.transport.links import Link, LinkServer
from rearview.transport.wire import Kind, decode_json
from support.raw_stream import eventually

pytestmark = pytest.mark.integration

CONFIG = LinkConfig(secret="secret")


class Server:
    """A process that has something to give."""

    def __init__(self, source: Source, versions: Versions | None = None) -> None:
        self.source = source
        self.links: list[Link] = []
        self.serving: list[asyncio.Task[None]] = []
        self.server = LinkServer(
            CONFIG, "node", on_message=self.take, on_closed=lambda _: None, versions=versions
        )

    def take(self, link: Link, kind: Kind, body: bytes) -> None:
        assert kind is Kind.PULL
        self.links.append(link)
        self.serving.append(asyncio.create_task(serve(link, decode_json(body), self.source)))

    @property
    def unsent_bytes(self) -> int:
        return sum(link._writer.transport.get_write_buffer_size() for link in self.links)


@asynccontextmanager
async def serving(source: Source, versions: Versions | None = None) -> AsyncIterator[tuple[Server, str]]:
    server = Server(source, versions)
    address = str(await server.server.start())
    try:
        yield server, address
    finally:
        await server.server.stop()
        await asyncio.gather(*server.serving, return_exceptions=True)


async def all_of(address: str, config: LinkConfig = CONFIG, node: str = "node") -> bytes:
    return b"".join([part async for part in pull(config, node, address, {"value": 1})])


@pytest.mark.parametrize("node", ["node", "another node"], ids=["unix socket", "tcp"])
async def test_what_is_pulled_comes_whole_and_in_bounded_parts(node: str) -> None:
    pieces = [os.urandom(size) for size in (0, 1, 3_500_000, 10, PART_BYTES, 70_000, 0, PART_BYTES - 1)]

    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        assert request["value"] == 1
        for piece in pieces:
            yield piece

    async with serving(source) as (_, address):
        parts = [part async for part in pull(CONFIG, node, address, {"value": 1})]
    assert b"".join(parts) == b"".join(pieces)
    assert {len(part) for part in parts[:-1]} == {PART_BYTES}


async def test_nothing_at_all_is_something_too() -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        for piece in ():
            yield piece

    async with serving(source) as (_, address):
        assert await all_of(address) == b""


async def test_a_slow_reader_bounds_what_both_ends_hold() -> None:
    """64 MiB are there to be had; while nobody reads on, a few parts are made and no more."""
    made = 0

    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        nonlocal made
        for _ in range(64):
            made += 1
            yield bytes(PART_BYTES)

    async with serving(source) as (server, address):
        parts = pull(CONFIG, "node", address, {})
        async with aclosing(parts):
            size = len(await anext(parts))
            await eventually(lambda: made > 1)
            for read in range(1, 64):
                for _ in range(20):
                    await asyncio.sleep(0)
                assert made <= read + 4
                assert server.unsent_bytes <= 2 * PART_BYTES
                size += len(await anext(parts))
        assert size == 64 * PART_BYTES


async def test_whoever_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = asyncio.Event()

    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(PART_BYTES)
        finally:
            closed.set()

    monkeypatch.setattr(bulk, "STALL_S", 0.2)
    async with serving(source) as (server, address):
        parts = pull(CONFIG, "node", address, {})
        async with aclosing(parts):
            await anext(parts)
            await asyncio.wait_for(closed.wait(), 10)
            await asyncio.wait_for(server.serving[0], 10)
            await eventually(lambda: server.links[0].closed)


async def test_a_source_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b""

    monkeypatch.setattr(bulk, "STALL_S", 0.05)
    async with serving(source) as (server, address):
        with pytest.raises(Refused) as caught:
            await all_of(address)
        assert caught.value.reason is Reason.REPLICA_LOST
        server.serving[0].cancel()


async def test_a_source_whose_process_beats_but_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        yield b"some"
        await asyncio.Event().wait()

    async def beat(server: Server) -> None:
        while True:
            server.server.broadcast(Kind.HEARTBEAT, b"{}")
            await asyncio.sleep(0.005)

    monkeypatch.setattr(bulk, "STALL_S", 1.0)
    async with serving(source) as (server, address):
        beating = asyncio.create_task(beat(server))
        async with asyncio.timeout(10):
            assert await lost(all_of(address))
        beating.cancel()
        server.serving[0].cancel()


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_refusal_comes_with_its_reason_at_the_start_and_in_the_middle(after: int) -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        for _ in range(after):
            yield bytes(PART_BYTES)
        raise NotFound(Reason.SESSION_UNKNOWN, "it is gone", metadata={"cause": "test"})

    async with serving(source) as (_, address):
        with pytest.raises(NotFound) as caught:
            await all_of(address)
        assert (caught.value.message, caught.value.metadata) == ("it is gone", {"cause": "test"})


async def test_a_source_that_fails_ends_the_connection_and_is_heard_of() -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        yield b"some"
        raise KeyError("planted")

    async with serving(source) as (server, address):
        assert await lost(all_of(address))
        with pytest.raises(KeyError):
            await server.serving[0]


async def test_a_source_that_dies_in_the_middle_is_lost() -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            yield bytes(PART_BYTES)
        server.links[0].close()
        yield bytes(PART_BYTES)

    async with serving(source) as (server, address):
        assert await lost(all_of(address))


async def test_nobody_pulls_who_does_not_know_the_secret() -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        yield b"secrets"

    async with serving(source) as (server, address):
        assert await lost(all_of(address, LinkConfig(secret="another")))
        assert not server.links
        assert await lost(all_of("node|/nowhere|127.0.0.1|1"))


async def test_a_peer_of_version_1_is_not_asked() -> None:
    async def source(request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        yield b"never"

    async with serving(source, Versions(1, 1)) as (server, address):
        assert await lost(all_of(address))
        assert not server.links


async def lost(pulling: Any) -> bool:
    with pytest.raises(RearviewError) as caught:
        await pulling
    return caught.value.reason is Reason.REPLICA_LOST
