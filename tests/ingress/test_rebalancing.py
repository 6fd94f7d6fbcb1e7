"""Sessions leave a full replica for an emptier one, one at a time, and lose nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from rearview.control.rebalance import REST_S
from rearview.ingress.rebalancing import CLAIM
from rearview.ingress.service import Ingress
from rearview.replica.stage import Stage
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import several
from support.raw_stream import RawStream, eventually, null_config
from support.service import InProcessService

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("measured")]

STREAMS = 4
"""Each takes 0.2 of a replica."""


@asynccontextmanager
async def one_full_replica(
    ingresses: int = 2, checkpoint: str = "null"
) -> AsyncIterator[tuple[InProcessService, list[RawStream]]]:
    """Two ingresses with two sessions each on one replica; then comes a second replica."""
    config = null_config(slots=STREAMS, model={"checkpoint": checkpoint})
    async with several(ingresses, config) as service:
        streams = [RawStream(service.addresses[n % ingresses]) for n in range(STREAMS)]
        for stream in streams:
            await stream.start(frame_rate=10.0, drop_policy=pb.DROP_POLICY_LOSSLESS)
            await stream.frame(0)
            await stream.read_answers(1)
        added = Stage(config, 0, "span-0#1", "node")
        await added.start()
        service.stages.append(added)
        for number in range(ingresses):
            await service.ingresses[number].refresh()
        try:
            yield service, streams
        finally:
            for stream in streams:
                await stream.__aexit__()


def held_by(service: InProcessService) -> list[int]:
    return [stage.num_sessions for stage in service.stages]


async def look(ingress: Ingress, later_s: float = 0.0) -> bool:
    """Let it decide, as if it were so much later."""
    rebalancing = ingress._moving.rebalancing
    clock, rebalancing._clock = rebalancing._clock, lambda: clock() + later_s
    try:
        return await rebalancing.look()
    finally:
        rebalancing._clock = clock


async def test_two_ingresses_at_once_move_what_is_worth_it_and_then_nothing() -> None:
    async with one_full_replica() as (service, streams):
        both = service.ingresses[0], service.ingresses[1]
        for _ in range(STREAMS):
            await asyncio.gather(*map(look, both))
        await eventually(lambda: held_by(service) == [2, 2])
        for later_s in (0.0, 2 * REST_S):
            assert await asyncio.gather(*(look(each, later_s) for each in both)) == [False, False]
        moved = 0
        for stream in streams:
            await stream.frame(1)
            await stream.read_answers(1)
            assert [each.frame.frame_index for each in stream.answers] == [0, 1]
            assert stream.moves in ([], [pb.CONTINUITY_EXACT])
            moved += len(stream.moves)
        assert moved == 2
        assert await service.directory.claims(CLAIM) == []


async def test_who_finds_another_at_it_leaves_it_to_him() -> None:
    async with one_full_replica() as (service, _):
        await service.directory.claim(CLAIM, "ingress#1", 30.0)
        assert not await look(service.ingresses[0])
        assert held_by(service) == [4, 0]
        assert await look(service.ingresses[1])
        assert await look(service.ingresses[0])
        await eventually(lambda: held_by(service) == [2, 2])


@pytest.mark.parametrize("checkpoint", ["null", "chain"])
async def test_a_session_whose_replica_is_lost_in_the_middle_of_a_move_is_recovered(checkpoint: str) -> None:
    async with one_full_replica(ingresses=1, checkpoint=checkpoint) as (service, streams):
        moving = asyncio.create_task(look(service.ingresses[0]))
        await eventually(lambda: bool(service.ingresses[0]._moving.rebalancing._tasks._running))
        await service.stages.pop(0).stop()
        await moving
        await eventually(lambda: held_by(service) == [4])
        for stream in streams:
            await stream.frame(1)
            await stream.read_answers(1)
            assert [each.frame.frame_index for each in stream.answers] == [0, 1]


async def test_a_service_rebalances_by_itself_if_it_is_told_to() -> None:
    async with one_full_replica() as (service, _):
        for number in range(2):
            rebalancing = service.ingresses[number]._moving.rebalancing
            assert rebalancing._every_s is None
            rebalancing._every_s = 0.05
            service.ingresses[number]._background.add(asyncio.create_task(rebalancing.run()))
        await eventually(lambda: held_by(service) == [2, 2])
