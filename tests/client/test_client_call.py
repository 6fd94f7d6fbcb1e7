"""A call that the server ends while the client writes, and before it has read what there is."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from rearview.client.call import Call
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1 import translation_service_pb2_grpc

pytestmark = pytest.mark.integration

ANSWERS = 5
DEADLINE_S = 10.0


class Ending(translation_service_pb2_grpc.TranslationServiceServicer):
    """Answers the first message several times, and ends the call with a status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code

    async def Translate(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.read()
        for _ in range(ANSWERS):
            await context.write(pb.TranslateResponse())
        if self.code is not grpc.StatusCode.OK:
            await context.abort(self.code, "the reason")


@asynccontextmanager
async def serving(code: grpc.StatusCode) -> AsyncIterator[int]:
    """A server that ends every call with a status: its port."""
    server = grpc.aio.server()
    translation_service_pb2_grpc.add_TranslationServiceServicer_to_server(Ending(code), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def written_to_its_end(port: int) -> tuple[Call, grpc.aio.Channel]:
    """A call of which one answer was read, and that a write has found ended."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
    raw: Any = translation_service_pb2_grpc.TranslationServiceStub(channel).Translate()
    call = Call(raw)
    async with asyncio.timeout(DEADLINE_S):
        await call.write(pb.TranslateRequest())
        await call.read()
        while not raw.done():
            await call.write(pb.TranslateRequest())
            await asyncio.sleep(0)
    return call, channel


def connections_to(port: int) -> int:
    """Sockets of this process that lead to a port."""
    mine = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # Closed since it was listed.
            mine.add(os.readlink(link))
    lines = [
        line for kind in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()
    ]
    fields = [line.split() for line in lines if "sl" not in line]
    return sum(f"socket:[{each[9]}]" in mine and int(each[2].split(":")[1], 16) == port for each in fields)


async def test_answers_and_status_are_read_after_a_write_has_met_the_end() -> None:
    async with serving(grpc.StatusCode.INVALID_ARGUMENT) as port:
        call, channel = await written_to_its_end(port)
        for _ in range(ANSWERS - 1):
            assert await call.read() is not None
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details() == "the reason"
        await channel.close()


async def test_a_write_that_meets_an_orderly_end_is_no_failure() -> None:
    async with serving(grpc.StatusCode.OK) as port:
        call, channel = await written_to_its_end(port)
        for _ in range(ANSWERS - 1):
            assert await call.read() is not None
        assert await call.read() is None
        assert await call.read() is None
        await channel.close()


async def test_a_call_that_is_left_with_answers_unread_gives_its_connection_back() -> None:
    async def leave(port: int) -> None:
        call, channel = await written_to_its_end(port)
        assert connections_to(port) == 1
        call.leave()
        await channel.close()

    async with serving(grpc.StatusCode.INVALID_ARGUMENT) as port:
        await leave(port)
        async with asyncio.timeout(DEADLINE_S):
            while connections_to(port):
                gc.collect()  # A channel that is closed keeps its socket while somebody has it.
                await asyncio.sleep(0.02)
