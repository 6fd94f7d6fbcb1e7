"""A server that is away is probed until it is back, whatever fails beside that."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from rearview.control.circuit import Circuit
from rearview.directory import DirectoryUnavailable
from rearview.directory.connection import Connection
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import TimeoutError as Unanswered
from support.raw_stream import eventually

pytestmark = pytest.mark.unit


class Server:
    """It answers or does not; its connections cannot be closed, as those over TLS to a frozen one."""

    def __init__(self) -> None:
        self.connection_pool = self
        self.fails: Exception | None = None

    async def disconnect(self, inuse_connections: bool = True) -> None:
        raise Unanswered("Timed out closing connection")

    async def aclose(self) -> None:
        pass

    async def call(self) -> str:
        if self.fails is not None:
            raise self.fails
        return "here"


async def answers(connection: Connection, server: Server) -> bool:
    try:
        return await connection.ask(server.call) == "here"
    except DirectoryUnavailable:
        return False


@pytest.mark.parametrize("probe_fails", [Unreachable("away"), KeyError("of another kind")])
async def test_a_server_is_used_again_although_its_connections_could_not_be_closed(
    probe_fails: Exception,
) -> None:
    server = Server()
    connection = Connection(cast("Redis[Any]", server), Circuit(), server.call)
    server.fails = Unreachable("away")
    assert not await answers(connection, server)
    server.fails = probe_fails
    await eventually(lambda: connection._circuit.failures > 1)
    server.fails = None
    async with asyncio.timeout(2.0):
        await eventually(lambda: answers(connection, server))
    await connection.close()


async def test_probes_that_have_ended_begin_again_with_the_next_call() -> None:
    server = Server()
    connection = Connection(cast("Redis[Any]", server), Circuit(), server.call)
    server.fails = Unreachable("away")
    assert not await answers(connection, server)
    assert connection._probing is not None
    connection._probing.cancel()
    await asyncio.wait({connection._probing})
    server.fails = None
    async with asyncio.timeout(2.0):
        await eventually(lambda: answers(connection, server))
    await connection.close()
