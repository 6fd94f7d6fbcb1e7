"""Spares: room for sessions that lose their replica, kept from new ones, taken by one ingress at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from rearview.control.spares import SPARE
from rearview.errors import Reason
from rearview.ingress import spares as shell
from rearview.replica.stage import Stage
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import crash, several
from support.raw_stream import RawStream, null_config
from support.service import InProcessService

pytestmark = pytest.mark.integration

SLOTS = 2
PREFIX = shell.PREFIX


@asynccontextmanager
async def service_of(replicas: int, spares: int = 1) -> AsyncIterator[InProcessService]:
    """Two ingresses and so many replicas, some of them spares."""
    config = null_config(slots=SLOTS, replicas=replicas)
    span = config.spans[0].model_copy(update={"spares": spares})
    async with several(2, config.model_copy(update={"spans": (span,)})) as service:
        yield service


async def spares_of(service: InProcessService) -> dict[str, str]:
    """Owner of the claim, by replica."""
    claims = await service.directory.claims(PREFIX)
    return {claim.key.removeprefix(PREFIX): claim.owner for claim in claims}


async def look(service: InProcessService, numbers: Iterable[int] = (0, 1)) -> None:
    """Every ingress looks at what there is."""
    for number in numbers:
        await service.ingresses[number].refresh()
        await service.ingresses[number]._spares.look()


async def open_many(service: InProcessService, count: int) -> list[RawStream]:
    """Two at one ingress, two at the other, and so on: so that both have one on each of two replicas."""
    streams = [RawStream(service.addresses[n // 2 % 2]) for n in range(count)]
    for stream in streams:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
    return streams


async def lose(service: InProcessService, name: str) -> None:
    stage = next(each for each in service.stages if each.describe()["replica_id"] == name)
    service.stages.remove(stage)
    await stage.stop()


async def translate(streams: Iterable[RawStream], index: int) -> None:
    for stream in streams:
        await stream.frame(index)
        await stream.read_answers(1)


async def close(streams: Iterable[RawStream]) -> None:
    for stream in streams:
        await stream.__aexit__()


def held_by(service: InProcessService) -> dict[str, int]:
    return {str(stage.describe()["replica_id"]): stage.num_sessions for stage in service.stages}


async def refused(address: str) -> Reason | None:
    async with RawStream(address) as stream:
        await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))))
        return (await stream.read_to_end()).reason


async def test_a_spare_takes_no_new_session_but_those_of_a_replica_that_is_lost() -> None:
    async with service_of(3) as service:
        assert await spares_of(service) == {"span-0#2": SPARE}
        streams = await open_many(service, 2 * SLOTS)
        for address in service.addresses:
            assert await refused(address) is Reason.NO_CAPACITY
        assert held_by(service) == {"span-0#0": 2, "span-0#1": 2, "span-0#2": 0}
        await lose(service, "span-0#1")
        await translate(streams, 0)
        assert held_by(service) == {"span-0#0": 2, "span-0#2": 2}
        (owner,) = (await spares_of(service)).values()
        assert owner in ("ingress#0", "ingress#1")
        await close(streams)


async def test_a_replica_that_comes_becomes_the_spare_once_the_one_before_has_gone_to_work() -> None:
    async with service_of(3) as service:
        streams = await open_many(service, 2 * SLOTS)
        await lose(service, "span-0#0")
        await translate(streams, 0)
        await look(service)
        assert SPARE not in (await spares_of(service)).values()
        added = Stage(service.config, 0, "span-0#3", "node")
        await added.start()
        service.stages.append(added)
        await look(service)
        assert (await spares_of(service))["span-0#3"] == SPARE
        for address in service.addresses:
            assert await refused(address) is Reason.NO_CAPACITY
        await close(streams)


async def test_of_two_ingresses_that_recover_at_once_each_counts_on_a_spare_of_its_own() -> None:
    async with service_of(4, spares=2) as service:
        one, other = (service.ingresses[n]._spares for n in range(2))
        await look(service)
        assert one.free == other.free == {"span-0#2", "span-0#3"}
        taken = await asyncio.gather(one.take(["span-0#2"]), other.take(["span-0#2"]))
        assert sorted(taken) == [False, True]
        loser = (one, other)[taken.index(False)]
        assert loser.others == {"span-0#2"}
        assert await loser.take(["span-0#3"])
        for _ in range(2):
            owners = await spares_of(service)
            assert {owners["span-0#2"], owners["span-0#3"]} == {"ingress#0", "ingress#1"}
            await look(service)  # The leader takes none of it back.


async def test_a_session_that_one_ingress_recovers_uses_what_another_has_taken_if_nothing_else_is_left() -> (
    None
):
    async with service_of(3) as service:
        streams = await open_many(service, 2 * SLOTS)
        second = service.stages[1].describe()["sessions"]
        owners = {n // 2 for n, stream in enumerate(streams) if stream.opened.session_id in second}
        assert owners == {0, 1}, "both ingresses must have a session there"
        await lose(service, "span-0#1")
        await translate(streams, 0)
        assert held_by(service) == {"span-0#0": 2, "span-0#2": 2}
        await close(streams)


async def test_when_the_leader_dies_another_goes_on_with_its_spares_after_its_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with service_of(3) as service:
        assert [service.ingresses[n]._spares.leads for n in range(2)] == [True, False]
        await crash(service.servers[0])
        await look(service, [1])
        assert not service.ingresses[1]._spares.leads
        later_s = service.config.directory.lease_s + 1.0
        monkeypatch.setattr(service.directory, "_clock", lambda: time.time() + later_s)
        assert await spares_of(service) == {"span-0#2": SPARE}
        await look(service, [1])
        assert service.ingresses[1]._spares.leads
        monkeypatch.setattr(service.directory, "_clock", lambda: time.time() + 2 * later_s)
        await look(service, [1])
        assert await spares_of(service) == {"span-0#2": SPARE}


async def test_a_leader_that_stops_in_order_leaves_at_once() -> None:
    async with service_of(2) as service:
        await service.servers[0].stop()
        await look(service, [1])
        assert service.ingresses[1]._spares.leads


async def test_a_service_without_spares_claims_nothing() -> None:
    async with service_of(2, spares=0) as service:
        await look(service)
        assert await service.directory.claims() == []
