"""A TCP relay with the faults of a network: cut, stalled, slow. For one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self

__all__ = ["Relay", "Way"]

READ_BYTES = 64 << 10


class Way(Enum):
    """How a relay treats what passes."""

    OPEN = "open"
    CUT = "cut"
    """Connections are reset, and new ones too."""
    STALLED = "stalled"
    """Nothing passes, and nobody is told."""
    SLOW = "slow"
    """Each piece waits for a while."""


class Relay:
    """`async with Relay(lambda: ("127.0.0.1", port)) as relay:` takes connections at `relay.port`."""

    def __init__(self, target: Callable[[], tuple[str, int]], delay_s: float = 0.05) -> None:
        """`target`: asked for every connection, since who is behind it may come back elsewhere."""
        self._target, self._delay_s = target, delay_s
        self._way = Way.OPEN
        self._passes = asyncio.Event()
        self._passes.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None, "enter it first"
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reset()

    def set(self, way: Way) -> None:
        """From now on."""
        self._way = way
        if way is Way.STALLED:
            self._passes.clear()
        else:
            self._passes.set()
        if way is Way.CUT:
            self._reset()

    def _reset(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._way is Way.CUT:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target())
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        ways = [
            asyncio.create_task(self._pass(reader, there_writer)),
            asyncio.create_task(self._pass(there_reader, writer)),
        ]
        self._tasks.update(ways)
        await asyncio.wait(ways)
        self._tasks.difference_update(ways)
        self._writers -= {writer, there_writer}
        for end in (writer, there_writer):
            end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if self._way is Way.SLOW:
                    await asyncio.sleep(self._delay_s)
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()
