"""Opens that meet a drain, a loss or a client that leaves: nothing is held that no session has."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from rearview.directory.memory import MemoryDirectory
from rearview.directory.protocol import DirectoryUnavailable
from rearview.engine.networks.model import Model
from rearview.errors import Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.planted import SlowPrepare
from support.raw_stream import OPERATORS, RawStream, assert_nothing_held, eventually, running
from support.service import InProcessService

pytestmark = pytest.mark.integration

PIPELINE = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))
OPEN = pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))


async def half_open(service: InProcessService, stream: RawStream) -> None:
    """Send an open, and return while its replicas are at work on it."""
    await stream.write(OPEN)
    await eventually(lambda: any(stage._sessions._opening for stage in service.stages))


async def test_a_drain_in_the_middle_of_an_open_refuses_it(plant_model: Callable[[Model], None]) -> None:
    plant_model(SlowPrepare(0.2))
    async with running(spans=PIPELINE) as service, RawStream(service.address) as stream:
        await half_open(service, stream)
        for ingress in service.ingresses:
            ingress.drain()
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
        assert end.retry_after_s is not None
        await assert_nothing_held(service)


async def test_a_stop_in_the_middle_of_an_open_leaves_nothing_held(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(SlowPrepare(0.2))
    async with running(spans=PIPELINE) as service, RawStream(service.address) as stream:
        await half_open(service, stream)
        for ingress in service.ingresses:
            await ingress.stop()
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
        await assert_nothing_held(service)


async def test_a_client_that_leaves_in_the_middle_of_an_open_leaves_nothing_held(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(SlowPrepare(0.2))
    async with running(spans=PIPELINE) as service, RawStream(service.address) as stream:
        await half_open(service, stream)
        stream.call.cancel()
        await assert_nothing_held(service)


@pytest.mark.parametrize("span", range(len(PIPELINE)))
async def test_a_replica_that_is_lost_in_the_middle_of_an_open_gives_way_to_another(
    plant_model: Callable[[Model], None], span: int
) -> None:
    plant_model(SlowPrepare(0.2))
    async with running(spans=PIPELINE, replicas=2) as service, RawStream(service.address) as stream:
        await half_open(service, stream)
        stage = service.stages[2 * span]
        assert stage._sessions._opening, "the session went elsewhere"
        service.stages.remove(stage)
        await stage.stop()
        response = await stream.read()
        assert response is not None, await stream.end()
        assert response.WhichOneof("message") == "opened"
        await stream.frame(0)
        await stream.read_answers(1)
        await assert_nothing_held(service, sessions=1)


async def test_a_lane_that_is_lost_as_soon_as_it_is_open_is_no_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(spans=PIPELINE) as service, RawStream(service.address) as stream:
        lanes = service.ingresses[0]._lanes  # The stream was given its address.
        answer = lanes._answer

        def lose(lane: object, error: BaseException | None) -> None:
            answer(lane, error)  # type: ignore[arg-type]
            monkeypatch.setattr(lanes, "_answer", answer)
            for link in tuple(lanes._pool._links.values())[1:2]:
                lanes._on_link_closed(link)

        monkeypatch.setattr(lanes, "_answer", lose)
        await stream.write(OPEN)
        response = await stream.read()  # From the second try, since there is no other replica.
        assert response is not None, await stream.end()
        assert response.WhichOneof("message") == "opened"
        assert response.opened.session_id in service.sessions
        (record,) = service.sessions
        assert record.session.lane.epoch == 2
        await assert_nothing_held(service, sessions=1)


async def test_no_session_is_evicted_because_the_directory_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as service, RawStream(service.address) as lost:
        opened = await lost.start()
        lost.call.cancel()
        await eventually(lambda: service.sessions[opened.session_id].stream is None)

        async def fail(*_: object, **__: object) -> None:
            raise DirectoryUnavailable

        with monkeypatch.context() as away:
            away.setattr(MemoryDirectory, "acquire", fail)
            async with RawStream(service.address) as stream:
                await stream.write(OPEN)
                end = await stream.read_to_end()
                assert (end.code, end.reason) == (
                    grpc.StatusCode.UNAVAILABLE,
                    Reason.DIRECTORY_UNAVAILABLE,
                )
                assert end.retry_after_s is not None
        async with RawStream(service.address) as back:
            await back.resume(opened, 0)


async def test_an_orderly_stop_closes_every_lane_before_its_links_end() -> None:
    async with running(spans=PIPELINE) as service:
        streams = [RawStream(service.address) for _ in range(3)]
        for stream in streams:
            await stream.start()
        for ingress in service.ingresses:
            await ingress._lanes.stop()
        # Well before the grace time of orphans.
        await eventually(lambda: {stage.num_sessions for stage in service.stages} == {0})
        for stream in streams:
            await stream.__aexit__()
