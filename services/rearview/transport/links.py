"""Persistent links between replicas: framing, order, bounds, authentication.

One link joins a pair of processes, over a Unix socket inside a node and TCP between nodes. Messages
arrive in the order in which they were sent. Both ends prove that they know the service's secret before
anything else is read, since a port is a door, and agree on the newest version that both speak. A link that
breaks, or whose peer stops reading, is closed and its owner told; nothing is sent again here: who owns a
session decides what its loss means.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable
from typing import Any, cast
from weakref import WeakValueDictionary

from rearview.config import LinkConfig
from rearview.transport.codec import SPOKEN, Versions
from rearview.transport.handshake import VERSION_1_ALONE, LinkClosed, OldPeer, WrongSecret, accept, dial
from rearview.transport.messages import MessageProtocol, message_prefix
from rearview.transport.secrets import secrets_of
from rearview.transport.sockets import SOCKET, Address, detect_dead_peer, reachable, socket_folder
from rearview.transport.tls import client_context, server_context
from rearview.transport.wire import SINCE, Body, Kind, WireError, decode_json, encode_json

__all__ = ["Address", "Link", "LinkClosed", "LinkPool", "LinkServer", "connect", "reachable"]

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 0.5
MAX_HANDSHAKES = 128
"""Connections of which nobody knows yet who they are; beyond that the oldest is closed, since those who know
the secret need milliseconds."""
ACCEPTING_TURNS = 3
"""Of the loop, from a connection to its handler."""
MAX_UNSENT_BYTES = 64 << 20
"""A peer that leaves more than this unread is taken for dead: frames in flight are bounded by far less."""
LARGE_BYTES = 1 << 17
"""A message from this size on is written part by part: asyncio would join its parts, and copy what the socket
does not take at once twice more. Of a smaller one that costs less than another call of the system."""

OnMessage = Callable[["Link", Kind, Body], None]
OnClosed = Callable[["Link"], None]


class Link:
    """One end of an authenticated link. All methods are for the event loop's thread."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        version: int,
        on_message: OnMessage,
        on_closed: OnClosed,
        max_bytes: int,
    ) -> None:
        """Takes a connection over from `reader` and `writer`, over which both ends have greeted.

        `version`: that on which they have agreed.
        """
        self.version = version
        self._writer = writer
        self._transport = cast(asyncio.Transport, writer.transport)  # That of a socket reads too.
        self._on_message, self._on_closed = on_message, on_closed
        self._kinds = {int(kind): kind for kind in Kind if self.knows(kind)}
        self._requests: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._closed = False
        self._messages = MessageProtocol(max_bytes, self._take, self._ended)
        self._task = asyncio.create_task(self._take_over(reader))

    def send(self, kind: Kind, *parts: bytes | memoryview) -> None:
        """Queue one message. Raises LinkClosed; a peer that does not read is closed here."""
        assert self.knows(kind), f"version {self.version} has no {kind.name}"
        if self._closed or self._transport.is_closing():  # The second a turn before the first.
            raise LinkClosed("link is closed")
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._transport.abort()  # Closing would wait for the peer to read.
            self.close()
            raise LinkClosed("peer does not read")
        num_bytes = sum(map(len, parts))
        written = (message_prefix(kind, num_bytes), *parts)
        if num_bytes < LARGE_BYTES:
            self._transport.writelines(written)
            return
        for part in written:
            self._transport.write(part)

    async def request(self, kind: Kind, content: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises LinkClosed."""
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._requests[number] = future
        try:
            self.send(kind, encode_json({**content, "request": number}))
            return await future
        finally:
            del self._requests[number]

    def reply(self, request: dict[str, Any], content: dict[str, Any]) -> None:
        """Answer a request; a peer that has gone needs no answer."""
        with contextlib.suppress(LinkClosed):
            self.send(Kind.REPLY, encode_json({**content, "request": request["request"]}))

    async def drained(self) -> None:
        """Return when the peer has read nearly all that was sent. Raises ConnectionError."""
        await self._messages.drained.wait()
        if self._messages.lost.is_set():
            raise ConnectionResetError("link is closed")

    def knows(self, kind: Kind) -> bool:
        """Whether the link's version has this kind of message."""
        return self.version >= SINCE.get(kind, 1)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Close at once; idempotent. `on_closed` is called once, later, from the loop."""
        self._messages.end()

    def part(self, kind: Kind) -> None:
        """Say a last word and hear nothing more: closed for its owner, though the socket stays until the
        peer ends it. On a socket that is closed, a peer that was stopped meanwhile would lose the word as
        soon as it says something itself.
        """
        with contextlib.suppress(LinkClosed):
            self.send(kind)
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().call_soon(self._tell_closed)

    @property
    def ended(self) -> bool:
        """Whether its socket is closed too."""
        return self._messages.lost.is_set()

    async def wait_closed(self) -> None:
        """After `close`: wait until the socket is closed; what a peer does not read by then is let go."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._messages.lost.wait()
        except TimeoutError:
            self._transport.abort()

    async def _take_over(self, reader: asyncio.StreamReader) -> None:
        """From here on the socket reads for the link; what `reader` has read ahead comes first."""
        self._transport.pause_reading()
        self._transport.set_protocol(self._messages)
        reader.feed_eof()
        with contextlib.suppress(ConnectionError):
            self._messages.feed(await reader.read())
        if self._transport.is_closing():  # Lost before, and told to the reader alone.
            self._messages.connection_lost(None)
        self._transport.resume_reading()

    def _take(self, number: int, body: bytearray) -> None:
        """Raises WireError: what the agreed version does not have, its peer cannot mean."""
        kind = self._kinds.get(number)
        if kind is None:
            raise WireError(f"version {self.version} has no messages of kind {number}")
        if self._closed:
            return
        if kind is not Kind.REPLY:
            self._on_message(self, kind, body)
            return
        content = decode_json(body)
        future = self._requests.get(content.pop("request"))
        if future is not None and not future.done():
            future.set_result(content)

    def _ended(self, error: Exception | None) -> None:
        """No message will come. The link closes in a turn of its own, since its owner may be at work."""
        if error is None:
            logger.debug("link ended")
        elif isinstance(error, ValueError):
            logger.error("link closed: %s", error)
        else:  # The edge of a link: one broken message ends this link, not the process.
            logger.error("link closed by a fault", exc_info=error)
        asyncio.get_running_loop().call_soon(self._finish)

    def _finish(self) -> None:
        self._writer.close()
        if not self._closed:
            self._closed = True
            self._tell_closed()

    def _tell_closed(self) -> None:
        for future in self._requests.values():
            if not future.done():
                future.set_exception(LinkClosed("link closed before the reply"))
        self._on_closed(self)


class LinkServer:
    """Takes links on a private Unix socket and on TCP."""

    def __init__(
        self,
        config: LinkConfig,
        node: str,
        *,
        on_message: OnMessage,
        on_closed: OnClosed,
        versions: Versions | None = None,
    ) -> None:
        """`versions`: those to speak; None: those of this release."""
        self._config, self._node, self._versions = config, node, versions or SPOKEN
        self._on_message, self._on_closed = on_message, on_closed
        self._folder = socket_folder(config.unix_dir)
        self._links: set[Link] = set()
        self._servers: list[asyncio.Server] = []
        self._handshakes: dict[asyncio.StreamWriter, None] = {}
        self._stopped = False

    async def start(self) -> Address:
        """Listen; returns where. The TCP port is a free one. Raises ConfigError for secrets and certificates
        that cannot be used.
        """
        secrets_of(self._config)
        context = server_context(self._config.tls)
        path = self._folder / SOCKET
        self._servers = [
            await asyncio.start_unix_server(self._accept, path),
            await asyncio.start_server(
                self._accept,
                self._config.host,
                0,
                ssl=context,
                ssl_handshake_timeout=None if context is None else HANDSHAKE_TIMEOUT_S,
            ),
        ]
        port = self._servers[1].sockets[0].getsockname()[1]
        return Address(self._node, str(path), reachable(self._config.host), port)

    def broadcast(self, kind: Kind, *parts: bytes) -> None:
        """Send to every peer that has dialled here and knows this kind."""
        for link in tuple(self._links):
            if link.knows(kind):
                with contextlib.suppress(LinkClosed):
                    link.send(kind, *parts)

    async def stop(self) -> None:
        """Stop listening and close every link."""
        self._stopped, loop = True, asyncio.get_running_loop()
        for socket in [each for server in self._servers for each in server.sockets]:
            loop.remove_reader(socket)
        for _ in range(ACCEPTING_TURNS):  # asyncio forgets to close what it has accepted and not handed over.
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        for writer in tuple(self._handshakes):
            writer.close()
        await _close_all(self._links)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:
            writer.close()
            return
        self._handshakes[writer] = None
        if len(self._handshakes) > MAX_HANDSHAKES:
            next(iter(self._handshakes)).close()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                version = await accept(reader, writer, secrets_of(self._config), self._versions)
        except LinkClosed as error:
            logger.warning("link refused: %s", error)
            writer.close()
            return
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            logger.warning("link refused: the peer did not authenticate")
            writer.close()
            return
        finally:
            self._handshakes.pop(writer, None)
        if self._stopped or writer.is_closing():
            writer.close()
            return
        detect_dead_peer(writer)
        self._links.add(
            Link(reader, writer, version, self._on_message, self._forget, self._config.max_frame_bytes)
        )

    def _forget(self, link: Link) -> None:
        self._links.discard(link)
        self._on_closed(link)


class LinkPool:
    """One dialled link per peer address, made when first needed."""

    def __init__(
        self,
        config: LinkConfig,
        node: str,
        *,
        on_message: OnMessage,
        on_closed: OnClosed,
        versions: Versions | None = None,
    ) -> None:
        """`versions`: those to speak; None: those of this release."""
        self._config, self._node, self._versions = config, node, versions or SPOKEN
        self._on_message, self._on_closed = on_message, on_closed
        self._links: dict[str, Link] = {}
        self._addresses: dict[Link, str] = {}
        """Of `_links`."""
        self._sockets: set[Link] = set()
        """All whose socket may be open, those that have parted included."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Of addresses that somebody waits for."""

    async def get(self, address: str) -> Link:
        """The link to `address`. Raises LinkClosed if it cannot be made."""
        lock = self._locks.setdefault(address, asyncio.Lock())
        async with lock:
            link = self._links.get(address)
            if link is None:
                link = await self._dial(address)
                self._links[address], self._addresses[link] = link, address
                self._sockets = {link, *(each for each in self._sockets if not each.ended)}
            return link

    def address(self, link: Link) -> str | None:
        """Where a link of this pool leads."""
        return self._addresses.get(link)

    async def stop(self) -> None:
        """Close every link."""
        await _close_all(self._sockets)

    async def _dial(self, address: str) -> Link:
        reader, writer, version = await connect(self._config, self._node, address, self._versions)
        return Link(reader, writer, version, self._on_message, self._closed, self._config.max_frame_bytes)

    def _closed(self, link: Link) -> None:
        self._on_closed(link)
        address = self._addresses.pop(link, None)
        if address is not None:
            del self._links[address]


async def connect(
    config: LinkConfig, node: str, address: str, versions: Versions = SPOKEN
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """Dial and greet; returns the connection and its version. `node`: this process's. Raises LinkClosed."""
    *former, last = secrets_of(config)
    for secret in former:
        with contextlib.suppress(WrongSecret):
            return await _connect_with(config, node, Address.parse(address), secret, versions)
    return await _connect_with(config, node, Address.parse(address), last, versions)


async def _connect_with(
    config: LinkConfig, node: str, address: Address, secret: bytes, versions: Versions
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    try:
        return await _connect_as(config, node, address, secret, versions)
    except OldPeer:
        return await _connect_as(config, node, address, secret, VERSION_1_ALONE)


async def _connect_as(
    config: LinkConfig, node: str, address: Address, secret: bytes, ours: Versions
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            if address.node == node:
                reader, writer = await asyncio.open_unix_connection(address.unix_path)
            else:
                context = client_context(config.tls)
                reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            try:
                version = await dial(reader, writer, secret, ours)
            except BaseException:
                writer.close()
                raise
    except OldPeer:
        raise
    except LinkClosed as error:
        logger.warning("link refused: %s", error)
        raise
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        raise LinkClosed(f"cannot link to a replica: {type(error).__name__}") from None
    detect_dead_peer(writer)
    return reader, writer, version


async def _close_all(links: Iterable[Link]) -> None:
    closing = tuple(links)
    for link in closing:
        link.close()
    await asyncio.gather(*(link.wait_closed() for link in closing))
