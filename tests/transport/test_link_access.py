"""Secrets that are replaced under running links, and TLS between hosts."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest
import uvloop
from rearview.access import LinkTls
from rearview.config import LinkConfig
from rearview.errors import ConfigError
from rearview.transport.codec import Versions
from rearview.transport.links import LinkClosed
from rearview.transport.secrets import with_secret
from rearview.transport.wire import Kind
from support.certificates import Authority
from support.peers import Peer, peers, raw
from support.raw_stream import eventually

pytestmark = pytest.mark.integration

OLD, NEW, NEWEST = "old-secret-0123456789", "new-secret-0123456789", "newest-secret-0123456789"


def holding(path: Path, *secrets: str) -> LinkConfig:
    write(path, *secrets)
    return LinkConfig(secret_file=path)


def write(path: Path, *secrets: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(secrets) + "\n")
    fresh.replace(path)


async def can_dial(peer: Peer, address: str) -> bool:
    """Over a connection of its own."""
    dialler = Peer(peer.config, peer.node, peer.versions)
    try:
        link = await dialler.pool.get(address)
        return bool((await link.request(Kind.OPEN, {"value": 1}))["echo"] == 1)
    except LinkClosed:
        return False
    finally:
        await dialler.stop()


async def test_a_secret_is_replaced_on_one_side_after_the_other_and_nothing_is_lost(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    server = Peer(holding(ours, OLD))
    client = Peer(holding(theirs, OLD), "another node")
    async with peers(server, client) as (_, server, client):
        await server.start()
        link = await client.pool.get(server.address)
        sent = 0

        async def traffic() -> None:
            nonlocal sent
            while True:
                link.send(Kind.FRAME, sent.to_bytes(4, "big"))
                sent += 1
                await asyncio.sleep(0.001)

        running = asyncio.create_task(traffic())
        for change in (
            lambda: write(ours, NEW, OLD),
            lambda: write(theirs, NEW, OLD),
            lambda: write(theirs, NEW),
            lambda: write(ours, NEW),
            lambda: write(theirs, NEWEST, NEW),  # In the other order.
            lambda: write(ours, NEWEST, NEW),
            lambda: write(ours, NEWEST),
        ):
            change()
            assert await can_dial(client, server.address)
        running.cancel()
        await eventually(lambda: len([m for m in server.messages if m[0] is Kind.FRAME]) == sent)
        numbers = [int.from_bytes(body, "big") for kind, body in server.messages if kind is Kind.FRAME]
        assert numbers == list(range(sent))
        assert not link.closed


async def test_the_secret_before_the_one_before_is_refused(tmp_path: Path) -> None:
    server, stale = Peer(holding(tmp_path / "ours", NEWEST, NEW)), Peer(holding(tmp_path / "stale", OLD))
    async with peers(server, stale) as (_, server, stale):
        await server.start()
        assert not await can_dial(stale, server.address)
        assert not await can_dial(Peer(LinkConfig(secret="guess")), server.address)


async def test_a_file_that_cannot_be_used_leaves_the_secrets_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Peer(holding(tmp_path / "ours", OLD))
    client = Peer(LinkConfig(secret=OLD))
    async with peers(server, client) as (_, server, client):
        await server.start()
        for content in ((), ("short",), (OLD, NEW, NEWEST)):
            write(tmp_path / "ours", *content)
            assert await can_dial(client, server.address)
        assert "the former ones hold" in caplog.text
        assert not any(secret in caplog.text for secret in (OLD, NEW, NEWEST))


@pytest.mark.parametrize("content", [None, "", "short", f"{OLD} {NEW} {NEWEST}"])
async def test_a_file_that_never_could_be_used_is_refused_at_start(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "secrets"
    if content is not None:
        path.write_text(content)
    peer = Peer(LinkConfig(secret_file=path))
    with pytest.raises(ConfigError, match="secrets"):
        await peer.start()
    await peer.stop()


async def test_an_old_peer_finds_its_way_while_secrets_are_replaced(tmp_path: Path) -> None:
    server = Peer(holding(tmp_path / "ours", NEW, OLD))
    old = Peer(holding(tmp_path / "old", OLD), "another node", Versions(1, 1))
    async with peers(server, old) as (_, server, old):
        await server.start()
        await old.start()
        assert await can_dial(old, server.address)
        assert await can_dial(Peer(server.config, "third node"), old.address)


def tls(authority: Authority, name: str) -> LinkTls:
    pair = authority.issue(name)
    return LinkTls(cert_file=pair.cert_file, key_file=pair.key_file, ca_file=authority.file)


async def test_links_between_hosts_speak_tls_both_ways(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    server = Peer(LinkConfig(secret=OLD, tls=tls(ours, "server")))
    friend = Peer(LinkConfig(secret=OLD, tls=tls(ours, "friend")), "another node")
    async with peers(server, friend) as (_, server, friend):
        await server.start()
        link = await friend.pool.get(server.address)
        body = bytes(range(256)) * 5000
        link.send(Kind.FRAME, body[:1000], memoryview(body)[1000:])
        await eventually(lambda: server.messages == [(Kind.FRAME, body)])
        assert link._writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert await can_dial(Peer(LinkConfig(secret=OLD)), server.address)  # Inside the node.


def test_tls_carries_messages_on_the_loop_that_replicas_have(tmp_path: Path) -> None:
    """Ray gives them uvloop, whose TLS is its own."""
    ours = Authority(tmp_path / "ours")
    bodies = [bytes([number]) * size for number, size in enumerate((0, 1, 70_000, 300_000, 5))]

    async def main() -> None:
        server = Peer(LinkConfig(secret=OLD, tls=tls(ours, "server")))
        friend = Peer(LinkConfig(secret=OLD, tls=tls(ours, "friend")), "another node")
        async with peers(server, friend) as (_, server, friend):
            await server.start()
            link = await friend.pool.get(server.address)
            for body in bodies:
                link.send(Kind.FRAME, body[:3], memoryview(body)[3:])
            assert (await link.request(Kind.OPEN, {"value": 1}))["echo"] == 1
            assert server.messages[:-1] == [(Kind.FRAME, body) for body in bodies]
            link.close()
            await eventually(lambda: len(server.closed) == 1)

    uvloop.run(main())


async def test_who_has_no_certificate_of_the_authority_is_kept_out(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    server = Peer(LinkConfig(secret=OLD, tls=tls(ours, "server")))
    forged = tls(others, "forged").model_copy(update={"ca_file": ours.file})
    strangers = [
        Peer(LinkConfig(secret=OLD), "plain"),
        Peer(LinkConfig(secret=OLD, tls=tls(others, "one")), "of another authority"),
        Peer(LinkConfig(secret=OLD, tls=forged), "believes in ours"),
        Peer(LinkConfig(secret="guess", tls=tls(ours, "guess")), "does not know the secret"),
    ]
    async with peers(server, *strangers) as (_, server, *strangers):
        await server.start()
        for stranger in strangers:
            assert not await can_dial(stranger, server.address), stranger.node
        assert server.messages == []
        reader, writer = await raw(server.address)
        writer.write(bytes(200))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1 << 20), 10)
        writer.close()


async def test_a_certificate_that_is_replaced_is_used_from_the_next_link_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    ours = Authority(tmp_path / "ours")
    own = tls(ours, "server")
    server = Peer(LinkConfig(secret=OLD, tls=own))
    client = Peer(LinkConfig(secret=OLD, tls=tls(ours, "client")), "another node")
    async with peers(server, client) as (_, server, client):
        await server.start()
        first = await client.pool.get(server.address)
        ours.issue("server")
        again = Peer(client.config, "another node")
        second = await again.pool.get(server.address)
        shown = [link._writer.get_extra_info("ssl_object").getpeercert(True) for link in (first, second)]
        assert shown[0] != shown[1]
        assert shown[1] == ssl.PEM_cert_to_DER_cert(
            own.cert_file.read_text().split("-----END")[0] + "-----END CERTIFICATE-----\n"
        )
        own.key_file.write_text("damaged")
        assert await can_dial(client, server.address)
        assert "certificates of links cannot be read" in caplog.text
        assert not first.closed
        await again.stop()


def test_a_secret_is_made_only_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> str:
        raise AssertionError("one was given")

    monkeypatch.delenv("REARVIEW_LINK_SECRET", raising=False)
    for config in (LinkConfig(secret="given"), LinkConfig(secret_file=tmp_path / "secrets")):
        assert with_secret(config, make) == config
    assert with_secret(LinkConfig(), lambda: "made").secret == "made"
