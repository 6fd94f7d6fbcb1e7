"""A TCP connection on which a test may put its hand: it counts the bytes that pass, and cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Wire", "wire"]


class Wire:
    """Between a browser and a studio. `target` is the port to which new connections go."""

    def __init__(self) -> None:
        self.port = self.target = 0
        self.passed = self.cuts = 0
        """Bytes in both directions since `cut_after`."""
        self.delay_s = 0.0
        """How long what is read waits before it goes on."""
        self._left: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._held: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """For a page."""
        return f"http://127.0.0.1:{self.port}"

    def cut_after(self, count: int | None) -> None:
        """Cut every connection once when so many more bytes have passed; None: never."""
        self.passed, self._left = 0, count

    def cut(self) -> None:
        """Cut every connection that there is."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Carry nothing more over the connections that there are, nor their end: the network is gone."""
        self._held |= self._writers

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        ways = [self._pump(reader, there[1]), self._pump(there[0], writer)]
        await asyncio.gather(*ways)
        for each in self._held & {writer, there[1]}:
            each.transport.abort()
        self._writers -= {writer, there[1]}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await asyncio.sleep(self.delay_s)
                if writer in self._held:
                    continue
                if self._left is not None and self.passed + len(data) >= self._left:
                    writer.write(data[: self._left - self.passed])
                    self._left = None
                    self.cut()
                    return
                self.passed += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        if writer not in self._held:
            writer.close()


@asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    """One that listens at a free port of loopback."""
    carried = Wire()
    server = await asyncio.start_server(carried._carry, "127.0.0.1", 0)
    carried.port = server.sockets[0].getsockname()[1]
    try:
        yield carried
    finally:
        server.close()
        carried.cut()
