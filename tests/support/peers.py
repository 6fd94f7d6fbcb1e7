"""Processes that do nothing but hold links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rearview.config import LinkConfig
from rearview.transport.codec import Versions
from rearview.transport.links import Address, Link, LinkPool, LinkServer
from rearview.transport.wire import Kind, decode_json

__all__ = ["Peer", "peers", "raw"]

CONFIG = LinkConfig(secret="secret")


@dataclass
class Peer:
    """One process's links: what came and what closed."""

    config: LinkConfig = CONFIG
    node: str = "node"
    versions: Versions | None = None
    messages: list[tuple[Kind, bytes]] = field(default_factory=list)
    closed: list[Link] = field(default_factory=list)
    answers: bool = True

    def __post_init__(self) -> None:
        self.server = LinkServer(
            self.config,
            self.node,
            on_message=self.on_message,
            on_closed=self.closed.append,
            versions=self.versions,
        )
        self.pool = LinkPool(
            self.config,
            self.node,
            on_message=self.on_message,
            on_closed=self.closed.append,
            versions=self.versions,
        )

    async def start(self) -> str:
        self.address = str(await self.server.start())
        return self.address

    def on_message(self, link: Link, kind: Kind, body: bytes) -> None:
        self.messages.append((kind, body))
        if body == b"choke":
            raise KeyError("planted")
        if kind is Kind.OPEN and self.answers:
            request = decode_json(body)
            link.reply(request, {"echo": request["value"]})

    async def stop(self) -> None:
        await self.pool.stop()
        await self.server.stop()


@asynccontextmanager
async def peers(*others: Peer) -> AsyncIterator[tuple[Peer, ...]]:
    """A server and those who dial it."""
    everyone = (Peer(), *(others or (Peer(),)))
    await everyone[0].start()
    try:
        yield everyone
    finally:
        for peer in everyone:
            await peer.stop()


async def raw(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the port that is open to other nodes."""
    parsed = Address.parse(address)
    return await asyncio.open_connection(parsed.host, parsed.port)
