"""Links over real sockets: order, bounds, and nobody in who does not know the secret."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import os
import random
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from rearview.config import LinkConfig
from rearview.transport import handshake, links
from rearview.transport.codec import SPOKEN
from rearview.transport.links import Address, Link, LinkClosed
from rearview.transport.messages import message_prefix
from rearview.transport.wire import Kind
from support.peers import Peer, peers, raw
from support.raw_stream import eventually

pytestmark = pytest.mark.integration

Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.mark.parametrize("node", ["node", "another node"], ids=["unix socket", "tcp"])
async def test_messages_of_every_size_arrive_whole_and_in_order(node: str) -> None:
    chance = random.Random(1)
    sent = [os.urandom(chance.choice((0, 1, 100, 70_000, 300_000))) for _ in range(120)]
    async with peers(Peer(node=node)) as (server, client):
        link = await client.pool.get(server.address)
        for body in sent:
            link.send(Kind.FRAME, body[: len(body) // 2], memoryview(body)[len(body) // 2 :])
            if chance.random() < 0.1:
                await asyncio.sleep(0)
        await eventually(lambda: len(server.messages) == len(sent))
        assert server.messages == [(Kind.FRAME, body) for body in sent]


async def test_a_large_picture_is_handed_to_the_socket_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, joined, handed = memoryview(bytes(1 << 20)), [], []
    async with peers() as (server, client):
        link = await client.pool.get(server.address)
        write, writelines = link._transport.write, link._transport.writelines
        monkeypatch.setattr(link._transport, "write", lambda part: (handed.append(part), write(part)))
        monkeypatch.setattr(
            link._transport, "writelines", lambda parts: (joined.append(parts), writelines(parts))
        )
        link.send(Kind.FRAME, b"header", picture)
        assert handed[-1] is picture
        assert not joined
        link.send(Kind.FRAME, b"header", picture[:1000])
        assert len(joined) == 1
        await eventually(lambda: len(server.messages) == 2)
        assert server.messages[0] == (Kind.FRAME, b"header" + picture)


async def test_messages_go_both_ways_on_one_link() -> None:
    async with peers() as (server, client):
        await client.pool.get(server.address)
        await eventually(lambda: bool(server.server._links))
        server.server.broadcast(Kind.DRAINING, b"{}")
        await eventually(lambda: client.messages == [(Kind.DRAINING, b"{}")])


async def test_replies_find_their_requests() -> None:
    async with peers() as (server, client):
        link = await client.pool.get(server.address)
        replies = await asyncio.gather(*(link.request(Kind.OPEN, {"value": i}) for i in range(50)))
        assert [reply["echo"] for reply in replies] == list(range(50))


async def test_one_link_joins_a_pair_however_many_ask_for_it() -> None:
    async with peers() as (server, client):
        found = await asyncio.gather(*(client.pool.get(server.address) for _ in range(20)))
        assert len(set(map(id, found))) == 1
        await eventually(lambda: len(server.server._links) == 1)


async def test_a_closed_link_is_told_once_and_dialled_anew() -> None:
    async with peers() as (server, client):
        link = await client.pool.get(server.address)
        await eventually(lambda: bool(server.server._links))
        link.close()
        link.close()
        await eventually(lambda: len(client.closed) == len(server.closed) == 1)
        assert link.closed
        with pytest.raises(LinkClosed):
            link.send(Kind.FRAME, b"")
        again = await client.pool.get(server.address)
        assert again is not link
        assert (await again.request(Kind.OPEN, {"value": 1}))["echo"] == 1


async def test_requests_fail_when_the_link_closes() -> None:
    async with peers() as (server, client):
        server.answers = False
        link = await client.pool.get(server.address)
        requests = [asyncio.create_task(link.request(Kind.OPEN, {"value": i})) for i in range(3)]
        await eventually(lambda: len(server.messages) == 3)
        await server.server.stop()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(result) for result in results] == [LinkClosed] * 3


@pytest.mark.parametrize("node", ["node", "another node"], ids=["unix socket", "tcp"])
async def test_a_wrong_secret_is_refused_and_disturbs_nobody(node: str) -> None:
    stranger = Peer(LinkConfig(secret="guess"), node)
    async with peers(Peer(), stranger) as (server, friend, _):
        link = await friend.pool.get(server.address)
        with pytest.raises(LinkClosed):
            await stranger.pool.get(server.address)
        assert (await link.request(Kind.OPEN, {"value": 1}))["echo"] == 1
        assert len(server.server._links) == 1
        assert server.closed == []


JUNK = [
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(200),
    handshake.PROTOCOL,
    handshake.PROTOCOL + bytes(SPOKEN) + bytes(handshake.NONCE_BYTES),
    handshake.PROTOCOL + bytes(SPOKEN) + bytes(handshake.NONCE_BYTES) + bytes(32),
    handshake.PROTOCOL + b"-1" + bytes(handshake.NONCE_BYTES) + bytes(32),
    handshake.PROTOCOL + bytes(2) + bytes(handshake.NONCE_BYTES) + bytes(32),
    os.urandom(4096),
    bytes(1 << 20),
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_a_port_scanner_is_refused_and_disturbs_nobody(junk: bytes) -> None:
    async with peers() as (server, friend):
        link = await friend.pool.get(server.address)
        reader, writer = await raw(server.address)
        writer.write(junk)
        writer.write_eof()
        try:
            greeting = await asyncio.wait_for(reader.read(), 10)
        except ConnectionResetError:
            greeting = b""
        writer.close()
        # It learns our protocol and versions, a nonce and at most a proof that is worth nothing elsewhere.
        assert len(greeting) <= handshake.GREETING_BYTES + 32
        assert (await link.request(Kind.OPEN, {"value": 1}))["echo"] == 1
        assert len(server.server._links) == 1
        assert len(server.messages) == 1


async def test_a_peer_that_says_nothing_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "HANDSHAKE_TIMEOUT_S", 0.1)
    async with peers() as (server, _):
        reader, writer = await raw(server.address)
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert not server.server._links


async def test_strangers_that_say_nothing_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_HANDSHAKES", 3)
    async with peers(Peer(node="another node")) as (server, friend):
        strangers = [await raw(server.address) for _ in range(10)]
        await eventually(lambda: len(server.server._handshakes) == 3)
        for reader, writer in strangers[:7]:
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        link = await friend.pool.get(server.address)
        assert (await link.request(Kind.OPEN, {"value": 1}))["echo"] == 1
        for _, writer in strangers[7:]:
            writer.close()
        await eventually(lambda: not server.server._handshakes)


async def test_a_pool_forgets_addresses_to_which_no_link_is_being_made() -> None:
    async with peers() as (server, client):
        link = await client.pool.get(server.address)
        for number in range(1000):
            with pytest.raises(LinkClosed):
                await client.pool.get(f"node|/nowhere/{number}|127.0.0.1|1")
        link.close()
        await eventually(lambda: not client.pool._links)
        await eventually(lambda: not client.pool._locks)


async def test_a_listener_that_mirrors_what_it_hears_is_no_peer() -> None:
    hung_up = asyncio.Event()

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    listener = await asyncio.start_server(mirror, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with peers() as (_, client):
        with pytest.raises(LinkClosed):
            await client.pool.get(str(Address("elsewhere", "", "127.0.0.1", port)))
    await asyncio.wait_for(hung_up.wait(), 10)
    listener.close()


async def test_nobody_listens_where_a_replica_was() -> None:
    async with peers() as (server, client):
        await server.server.stop()
        with pytest.raises(LinkClosed):
            await client.pool.get(server.address)


async def test_a_message_over_the_limit_closes_its_link_alone() -> None:
    small = Peer(LinkConfig(secret="secret", max_frame_bytes=1 << 16))
    await small.start()
    async with peers(Peer(), Peer()) as (_, good, bad):
        kept, broken = await good.pool.get(small.address), await bad.pool.get(small.address)
        broken.send(Kind.FRAME, bytes((1 << 16) + 1))
        await eventually(lambda: broken.closed)
        assert (await kept.request(Kind.OPEN, {"value": 1}))["echo"] == 1
        kept.send(Kind.FRAME, bytes(1 << 16))
        await eventually(lambda: len(small.messages) == 2)
    await small.stop()


@pytest.mark.parametrize("body", [b"choke", None], ids=["a receiver that fails", "an unknown kind"])
async def test_a_message_that_cannot_be_taken_closes_its_link_alone(body: bytes | None) -> None:
    async with peers(Peer(), Peer()) as (server, good, bad):
        kept, broken = await good.pool.get(server.address), await bad.pool.get(server.address)
        if body is None:
            broken._writer.write(message_prefix(99, 0))
        else:
            broken.send(Kind.FRAME, body)
        await eventually(lambda: broken.closed)
        assert (await kept.request(Kind.OPEN, {"value": 1}))["echo"] == 1


async def test_a_reply_to_nothing_is_ignored() -> None:
    async with peers() as (server, client):
        link = await client.pool.get(server.address)
        await eventually(lambda: bool(server.server._links))
        server.server.broadcast(Kind.REPLY, b'{"request":77}')
        assert (await link.request(Kind.OPEN, {"value": 1}))["echo"] == 1


async def test_a_peer_that_stops_reading_is_closed_and_its_bytes_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "MAX_UNSENT_BYTES", 1 << 20)
    async with peers(Peer(node="another node")) as (server, other):
        kept = await other.pool.get(server.address)
        reader, writer = await raw(server.address)
        await handshake.dial(reader, writer, b"secret", SPOKEN)
        await eventually(lambda: len(server.server._links) == 2)
        deaf = next(link for link in server.server._links if _port(link) == _own_port(writer))
        with pytest.raises(LinkClosed):
            await _flood(deaf)
        await eventually(lambda: server.closed == [deaf])
        assert deaf._writer.transport.get_write_buffer_size() == 0
        assert (await kept.request(Kind.OPEN, {"value": 1}))["echo"] == 1
        writer.close()


async def test_a_stopped_server_leaves_nothing_behind() -> None:
    async with peers() as (server, client):
        link = await client.pool.get(server.address)
        folder = Path(Address.parse(server.address).unix_path).parent
        assert folder.stat().st_mode & 0o077 == 0, "others may not look in"
        await server.server.stop()
        await eventually(lambda: link.closed)
        assert not folder.exists()
        assert not server.server._links


@pytest.mark.parametrize("turns", range(8))
async def test_who_dials_while_a_server_stops_leaves_nothing_open(turns: int) -> None:
    async with peers() as (server, _):
        path = Address.parse(server.address).unix_path
        stopping = asyncio.create_task(server.server.stop())
        for _ in range(turns):
            await asyncio.sleep(0)
        with socket.socket(socket.AF_UNIX) as dialled:
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                dialled.connect(path)
            await stopping
        await asyncio.sleep(0)
    with warnings.catch_warnings(record=True) as unclosed:
        gc.collect()
    assert not unclosed, [str(each.message) for each in unclosed]


async def _flood(link: Link) -> None:
    for _ in range(1000):
        link.send(Kind.FRAME, bytes(1 << 18))
        await asyncio.sleep(0)


def _port(link: Link) -> object:
    peer = link._writer.get_extra_info("peername")
    return peer[1] if peer else None


def _own_port(writer: asyncio.StreamWriter) -> object:
    return writer.get_extra_info("sockname")[1]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends at once"])
def test_what_comes_right_behind_the_greeting_is_taken(loop: Loop, ends: bool) -> None:
    """It was read ahead, while the link was not there yet."""

    async def early() -> None:
        async with peers() as (server, _):
            reader, writer = await raw(server.address)
            nonce = bytes(handshake.NONCE_BYTES)
            writer.write(handshake.PROTOCOL + bytes(SPOKEN) + nonce)
            answer = await reader.readexactly(handshake.GREETING_BYTES)
            nonces = nonce + answer[-handshake.NONCE_BYTES :]
            bodies = [b"", bytes(200_000), b"x" * 7]
            messages = [message_prefix(Kind.FRAME, len(body)) + body for body in bodies]
            writer.write(hmac.digest(b"secret", b"dialled" + nonces, "sha256") + b"".join(messages))
            await reader.readexactly(handshake.PROOF_BYTES)
            if ends:
                writer.close()
            await eventually(lambda: server.messages == [(Kind.FRAME, body) for body in bodies])
            await eventually(lambda: len(server.closed) == ends)
            writer.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(early())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_body_belongs_to_whoever_takes_it(loop: Loop) -> None:
    async def main() -> None:
        async with peers() as (server, client):
            link = await client.pool.get(server.address)
            for value in (1, 2):
                link.send(Kind.FRAME, bytes([value]) * 70_000)
            await eventually(lambda: len(server.messages) == 2)
            first, second = (body for _, body in server.messages)
            assert isinstance(first, bytearray)
            first[:] = bytes(len(first))
            assert second == b"\2" * 70_000

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_link_whose_socket_is_lost_takes_no_message_before_it_has_closed(loop: Loop) -> None:
    """Links to one lost host end in turn: the end of the first makes its owner send over the second."""

    async def main() -> None:
        async with peers() as (server, client):
            link = await client.pool.get(server.address)
            link._transport.abort()
            assert not link.closed
            with pytest.raises(LinkClosed):
                link.send(Kind.FRAME, b"")

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
