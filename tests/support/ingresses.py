"""Several ingresses over the same replicas and one directory, in one process; and how one of them dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

from rearview.config import ServiceConfig
from rearview.ingress.server import IngressServer
from rearview.ingress.stream import TranslateStream

from support.raw_stream import End, RawStream, null_config, quickly_stopped
from support.service import InProcessService, in_process_service

__all__ = ["CutAt", "crash", "cut_at", "one_wins", "several"]


async def crash(server: IngressServer) -> None:
    """End an ingress as SIGKILL does: connections and links break, nobody is told anything."""
    _break(server)
    await server._server.stop(None)


def _break(server: IngressServer) -> None:
    ingress = server._ingress
    for task in ingress._background:
        task.cancel()
    for link in (*ingress._lanes._pool._links.values(), *ingress._lanes._server._links):
        link._writer.transport.abort()
        link.close()
    ingress._lanes._perform = lambda _: None  # type: ignore[method-assign]
    for listening in ingress._lanes._server._servers:
        listening.close()
    for record in ingress.sessions:
        record.session.end()


async def one_wins(*streams: RawStream) -> tuple[RawStream, asyncio.Task[End], End]:
    """Of two streams that have asked for one session: which goes on, its end to come, and the other's end."""
    ends = {asyncio.create_task(each.read_to_end()): each for each in streams}
    lost, left = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    assert len(left) == 1, f"both have lost the session: {[each.result() for each in lost]}"
    ((won,), (end,)) = left, lost
    return ends[won], won, end.result()


class CutAt:
    """Kills an ingress before the message of a given number, of those that go in or out of it."""

    def __init__(self, server: IngressServer, number: int) -> None:
        self._server, self._left = server, number
        self._death: asyncio.Task[None] | None = None
        lanes, sender = server._ingress._lanes, server._ingress._edge.sender
        for name in (
            "send_frame",
            "send_note",
            "send_settings",
            "acknowledge",
            "leave_answer",
            "tell_dropped",
        ):
            setattr(sender, name, self._cut_before(getattr(sender, name)))
        lanes._take_picture = self._cut_before(lanes._take_picture)  # type: ignore[method-assign]

    @property
    def is_dead(self) -> bool:
        return self._death is not None

    def passes(self) -> bool:
        """Whether one message more goes through."""
        self._left -= 1
        if self._left < 0 and self._death is None:
            _break(self._server)
            self._death = asyncio.create_task(self._server._server.stop(None))
        return self._death is None

    def _cut_before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any) -> Any:
            return function(*args) if self.passes() else 0

        return guarded


@contextlib.contextmanager
def cut_at(server: IngressServer, number: int) -> Iterator[CutAt]:
    """With messages of gRPC counted, too."""
    cut, take, send = CutAt(server, number), TranslateStream._take, TranslateStream._send

    async def guarded_take(stream: TranslateStream, *args: Any) -> None:
        if stream._ingress is not server._ingress or cut.passes():
            await take(stream, *args)

    async def guarded_send(stream: TranslateStream, response: Any) -> None:
        if stream._ingress is server._ingress and not cut.passes():
            await asyncio.Event().wait()
        await send(stream, response)

    with (
        mock.patch.object(TranslateStream, "_take", guarded_take),
        mock.patch.object(TranslateStream, "_send", guarded_send),
    ):
        yield cut


@asynccontextmanager
async def several(count: int = 2, config: ServiceConfig | None = None) -> AsyncIterator[InProcessService]:
    """So many ingresses before the replicas of `config` (default: one, of a null model)."""
    with quickly_stopped():
        async with in_process_service(config or null_config(), count, shares=True) as service:
            yield service
