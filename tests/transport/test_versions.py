"""Which version a link speaks, and what may travel on it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os

import pytest
from rearview.transport.codec import Versions
from rearview.transport.links import Address, LinkClosed
from rearview.transport.wire import SINCE, Kind
from support.peers import Peer, peers, raw
from support.raw_stream import eventually

pytestmark = pytest.mark.integration

OLD, NEW, NEXT, FAR = Versions(1, 1), Versions(1, 2), Versions(2, 3), Versions(3, 4)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [(NEW, NEW, 2), (NEW, OLD, 1), (OLD, NEW, 1), (OLD, OLD, 1), (NEW, NEXT, 2), (NEXT, FAR, 3)],
    ids=str,
)
async def test_a_link_speaks_the_newest_version_that_both_ends_know(
    ours: Versions, theirs: Versions, agreed: int
) -> None:
    server = Peer(versions=theirs)
    await server.start()
    async with peers(Peer(versions=ours)) as (_, client):
        link = await client.pool.get(server.address)
        assert link.version == agreed
        assert (await link.request(Kind.OPEN, {"value": 1}))["echo"] == 1
        assert [accepted.version for accepted in server.server._links] == [agreed]
    await server.stop()


@pytest.mark.parametrize(
    ("ours", "theirs"), [(NEW, FAR), (FAR, NEW), (OLD, NEXT), (NEXT, OLD)], ids=lambda v: str(v)
)
async def test_ends_without_a_common_version_are_refused_and_the_log_names_both(
    ours: Versions, theirs: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    server = Peer(versions=theirs)
    await server.start()
    async with peers(Peer(versions=ours)) as (_, client):
        with caplog.at_level(logging.WARNING), pytest.raises(LinkClosed, match="version"):
            await client.pool.get(server.address)
        assert f"the peer speaks version {theirs}, this process {ours}" in caplog.text
        assert not server.server._links
    await server.stop()


def greeting(nonce: bytes) -> bytes:
    """What version 1 said before it knew that there would be others."""
    return b"rearview-link-1" + nonce


def proof(role: bytes, nonces: bytes) -> bytes:
    return hmac.new(b"secret", role + nonces, hashlib.sha256).digest()


async def test_a_peer_of_the_release_before_may_dial() -> None:
    async with peers() as (server, _):
        reader, writer = await raw(server.address)
        mine = os.urandom(32)
        writer.write(greeting(mine))
        answer = await reader.readexactly(47)
        assert answer.startswith(b"rearview-link-1")
        nonces = mine + answer[15:]
        writer.write(proof(b"dialled", nonces))
        assert await reader.readexactly(32) == proof(b"accepted", nonces)
        await eventually(lambda: [link.version for link in server.server._links] == [1])
        writer.close()


async def test_a_peer_of_the_release_before_may_be_dialled() -> None:
    tries = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        mine = os.urandom(32)
        writer.write(greeting(mine))
        hello = await reader.readexactly(47)
        if hello.startswith(b"rearview-link-1"):
            nonces = hello[15:] + mine
            writer.write(proof(b"accepted", nonces))
            assert await reader.readexactly(32) == proof(b"dialled", nonces)
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with peers() as (_, client):
        link = await client.pool.get(str(Address("elsewhere", "", "127.0.0.1", port)))
        assert (link.version, tries) == (1, 2)
    listener.close()


@pytest.mark.parametrize("kind", SINCE, ids=lambda kind: kind.name)
async def test_what_a_version_does_not_have_is_not_sent_and_ends_the_link_of_who_sends_it(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    old = Peer(versions=OLD)
    await old.start()
    async with peers(Peer()) as (_, client):
        link = await client.pool.get(old.address)
        assert not link.knows(kind)
        with pytest.raises(AssertionError, match=kind.name):
            link.send(kind, b"")
        link.version = SINCE[kind]
        link.send(kind, b"")
        await eventually(lambda: link.closed)
        assert f"version 1 has no messages of kind {int(kind)}" in caplog.text
        assert old.messages == []
    await old.stop()
