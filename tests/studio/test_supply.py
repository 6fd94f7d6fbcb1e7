"""Which service a wall's tiles are opened on while one starts and another one is asked for."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from rearview.client import Model
from rearview.errors import Reason, Refused
from rearview.studio.service import Service
from rearview.studio.supply import Supply

pytestmark = pytest.mark.unit


class FakeClient:
    is_open = True

    async def __aexit__(self, *_: object) -> None:
        self.is_open = False


class Services:
    """Connects to each at once, but to the first one only when told."""

    def __init__(self) -> None:
        self.may_start = asyncio.Event()
        self.failure: Refused | None = None
        self.clients: list[FakeClient] = []

    async def connect(self, model: str) -> Service:
        if not model:
            await self.may_start.wait()
            if self.failure is not None:
                raise self.failure
        self.clients.append(FakeClient())
        return Service(model, cast("Any", self.clients[-1]), Model())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_tile_that_waits_is_opened_on_the_model_that_was_taken_meanwhile(fails: bool) -> None:
    services = Services()
    supply = Supply(services.connect, lambda: None)
    waits = asyncio.create_task(supply.present())
    await asyncio.sleep(0)
    other = await supply.change("other")
    services.failure = Refused(Reason.REPLICA_LOST, "it did not start") if fails else None
    services.may_start.set()
    assert await waits is other
    supply.leave_unused([])
    await supply.close()
    assert [client.is_open for client in services.clients] == [False] * (1 if fails else 2)


async def test_a_service_that_still_starts_is_given_up_with_its_wall() -> None:
    services = Services()
    supply = Supply(services.connect, lambda: None)
    await supply.change("other")
    await supply.close()
    services.may_start.set()
    await asyncio.sleep(0)
    assert [client.is_open for client in services.clients] == [False], "one was entered that nobody closes"
