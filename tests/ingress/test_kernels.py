"""A session that goes on where other kernels compute keeps its past, and is told that pictures may differ."""

from __future__ import annotations

import asyncio

import pytest
from rearview.contract.stream import Continuity
from rearview.ingress.past import Past
from rearview.replica.stage import Stage
from rearview.v1 import translation_service_pb2 as pb
from support.pocket_sessions import FRAMES, lose, play, pocket, session_of, start, whole
from support.raw_stream import eventually
from support.service import InProcessService

EXACT, APPROXIMATE, RESET = Continuity.EXACT, Continuity.APPROXIMATE, Continuity.RESET
OURS, OTHERS = ("a", "b"), ("a", "c")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("before", "after", "past", "told"),
    [
        (OURS, OURS, EXACT, EXACT),
        (OURS, OTHERS, EXACT, APPROXIMATE),
        (OURS, OTHERS, RESET, RESET),
        (OURS, OURS, APPROXIMATE, APPROXIMATE),
        ((), OTHERS, EXACT, EXACT),  # Nobody knows: replicas of the release before do not say.
        (OURS, (), EXACT, EXACT),
    ],
)
def test_what_a_client_is_told_follows_from_past_and_kernels(
    before: tuple[str, ...], after: tuple[str, ...], past: Continuity, told: Continuity
) -> None:
    of = Past(frames=4)
    of.begin(before, ())
    assert of.goes_on(past, after) is told
    assert of.told_moved() is told
    assert of.goes_on(EXACT, after) is EXACT, "there it is at home now"


@pytest.mark.unit
@pytest.mark.parametrize(("before", "told"), [(OTHERS, APPROXIMATE), (OURS, EXACT), ((), EXACT)])
def test_a_session_that_was_parked_elsewhere_is_compared_with_its_last_lane(
    before: tuple[str, ...], told: Continuity
) -> None:
    past = Past(frames=4)
    past.begin(OURS, before)
    assert past.told_moved() is told


def other_than(service: InProcessService, lane: tuple[str, ...]) -> Stage:
    return next(stage for stage in service.stages if stage.describe()["replica_id"] not in lane)


@pytest.mark.integration
@pytest.mark.parametrize("is_planned", [True, False])
async def test_a_lane_of_other_kernels_is_announced_and_costs_no_past(is_planned: bool) -> None:
    async with pocket() as service:
        expected = await whole(service, "bank")
        stream = await start(service.address, "bank")
        await play(stream, range(5), answers=5)
        session = session_of(service, stream)
        before = session.lane.replicas
        other_than(service, before)._renewal.kernels = "compiled"
        if is_planned:
            stage = next(s for s in service.stages if s.describe()["replica_id"] == before[0])
            draining = asyncio.create_task(stage.drain(20.0))
            await play(stream, range(5, FRAMES), answers=FRAMES - 1)
            await draining
        else:
            await eventually(lambda: session.past.checkpointed is not None)
            await lose(service, before[0])
        # The past is whole all the same: with kernels that do compute the same, so are the pictures.
        rest = range(0) if is_planned else range(5, FRAMES)
        assert await play(stream, rest, answers=FRAMES) == expected
        assert stream.moves == [pb.CONTINUITY_APPROXIMATE]
        await stream.__aexit__()


@pytest.mark.integration
async def test_replicas_say_what_they_compute_with() -> None:
    async with pocket() as service:
        stream = await start(service.address, "bank")
        kernels = session_of(service, stream).lane.kernels
        assert [len(each) for each in kernels] == [32]
        assert {stage._renewal.kernels for stage in service.stages} == set(kernels)
        await stream.__aexit__()
