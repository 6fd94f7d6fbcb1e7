"""Floods keep to their time whatever the server does, and send what they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import grpc
import pytest
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1 import translation_service_pb2_grpc as pb_grpc

from loadtest.adapters import random_adapters
from loadtest.admission import LORAS
from loadtest.echo import start_server
from loadtest.floods import Sending, Target, _frames

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

SECONDS = 0.6


class Reader(pb_grpc.TranslationServiceServicer):
    """Opens one session, reads so many messages of it, and then none."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.opened = pb.Open()
        self.read: list[pb.TranslateRequest] = []

    async def Translate(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.TranslateRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        self.opened = (await context.read()).open
        await context.write(pb.TranslateResponse(opened=pb.Opened()))
        for _ in range(self.most):
            self.read.append(await context.read())
        await asyncio.sleep(SECONDS + 5)


async def test_a_flood_ends_on_time_where_the_server_reads_nothing() -> None:
    server, address = await start_server(Reader(0))
    began_s = time.monotonic()
    done = await _frames(Target(address, "a", 0.0, SECONDS), Sending(100.0, 10.0, bytes(1 << 20)))
    assert SECONDS <= time.monotonic() - began_s < SECONDS + 1.5
    assert done.frames < 100 * SECONDS  # The connection was full before that.
    await server.stop(None)


async def test_controls_ask_for_one_set_of_adapters_after_the_other() -> None:
    reader = Reader(9)
    server, address = await start_server(reader)
    sending = Sending(50.0, 10.0, b"image", size=64, controls=2, adapters=("ink", "oil"))
    await _frames(Target(address, "a", 0.0, SECONDS), sending)
    assert (reader.opened.width, reader.opened.frame_rate) == (64, 10.0)
    assert [each.WhichOneof("message") for each in reader.read] == ["frame", "control", "control"] * 3
    controls = [each.control for each in reader.read if each.HasField("control")]
    assert [each.settings.adapters for each in controls] == ["oil", "ink"] * 3
    assert all(a.control_id == b for a, b in zip(controls, count(1), strict=False))
    await server.stop(None)


def test_random_adapters_are_a_deployments_sets(tmp_path: Any) -> None:
    sets = random_adapters("pocket", tmp_path, LORAS)
    assert list(sets) == list(LORAS)
    assert len({(tmp_path / f"{name}.safetensors").read_bytes() for name in LORAS}) == len(LORAS)
