"""What clients see when a replica, a lease or the service goes; and affinity over gRPC."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from rearview.directory.memory import MemoryDirectory
from rearview.errors import Reason
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import OPERATORS, RawStream, assert_nothing_held, eventually, running

pytestmark = pytest.mark.integration

PIPELINE = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))


@pytest.mark.two_ingresses
@pytest.mark.parametrize("span", range(len(PIPELINE)))
async def test_sessions_of_a_lost_replica_go_on_elsewhere_behind_the_open_call(span: int) -> None:
    async with running(spans=PIPELINE, replicas=2) as service:
        streams = [RawStream(service.address) for _ in range(4)]
        lanes: list[tuple[str, ...]] = []
        for stream in streams:
            opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            lanes.append(service.sessions[opened.session_id].session.lane.replicas)
            await stream.frame(0)
            await stream.read_answers(1)
        lost = lanes[0][span]
        stage = next(s for s in service.stages if s.describe()["replica_id"] == lost)
        service.stages.remove(stage)
        await stage.stop()
        for stream, lane in zip(streams, lanes, strict=True):
            for number in (1, 2, 3):
                await stream.frame(number)
            await stream.read_answers(3)
            assert stream.indices == [0, 1, 2, 3]
            assert stream.drops == []
            assert stream.moves == ([pb.CONTINUITY_EXACT] if lost in lane else [])
        assert 0 < sum(lost in lane for lane in lanes) < 4
        await assert_nothing_held(service, sessions=4)
        for stream in streams:
            await stream.__aexit__()


async def test_a_replica_whose_engine_has_died_unheard_ends_no_session_that_looks_for_a_lane() -> None:
    async with running(replicas=3) as service:
        streams = [RawStream(service.address) for _ in range(2)]
        for stream in streams:
            await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            await stream.frame(0)
            await stream.read_answers(1)
        session = service.sessions[streams[0].opened.session_id].session
        lost = next(s for s in service.stages if s.describe()["replica_id"] in session.lane.replicas)
        dead = next(s for s in service.stages if s.num_sessions == 0)  # The first one to be tried.
        assert dead._pulse is not None
        assert dead._runner is not None
        await dead._pulse.stop()
        dead._runner.condemn()
        service.stages.remove(lost)
        await lost.stop()
        await streams[0].frame(1)
        await streams[0].read_answers(1)
        assert streams[0].moves == [pb.CONTINUITY_EXACT]
        assert dead.describe()["replica_id"] not in session.lane.replicas
        for stream in streams:
            await stream.__aexit__()


async def test_a_session_ends_if_no_lane_is_found_in_time() -> None:
    async with running(recovery={"give_up_s": 0}) as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.frame(0)
        await stream.read_answers(1)
        await service.stages.pop().stop()
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REPLICA_LOST)
        assert end.retry_after_s is not None
        await eventually(lambda: len(service.sessions) == 0)


async def test_a_break_between_two_spans_is_mended() -> None:
    async with running(spans=PIPELINE) as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.frame(0)
        await stream.read_answers(1)
        for link in tuple(service.stages[0]._pool._links.values()):
            link.close()
        await stream.frame(1)
        await stream.read_answers(1)
        assert stream.indices == [0, 1]
        await assert_nothing_held(service, sessions=1)


async def test_a_session_meets_the_same_replicas_for_life_while_others_spread() -> None:
    async with running(spans=PIPELINE, replicas=2) as service:
        streams = [RawStream(service.address) for _ in range(4)]
        for stream in streams:
            await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(12):
            await asyncio.gather(*(stream.frame(number) for stream in streams))
            await asyncio.gather(*(stream.read_answers(1) for stream in streams))
        for stage in service.stages:
            frames = stage.describe()["frames_by_session"]
            assert sorted(frames.values()) == [12, 12]
        for stream in streams:
            record = service.sessions[stream.opened.session_id]
            met = [
                stage.describe()["replica_id"]
                for stage in service.stages
                if stream.opened.session_id in stage.describe()["sessions"]
            ]
            assert tuple(met) == record.session.lane.replicas
        for stream in streams:
            await stream.__aexit__()


async def test_leases_are_renewed_and_a_lease_that_was_taken_ends_the_stream() -> None:
    async with running(directory={"lease_s": 1.2}) as service, RawStream(service.address) as stream:
        opened = await stream.start()
        record = service.sessions[opened.session_id]
        first = record.session.lease
        await eventually(lambda: record.session.lease.expiry_s > first.expiry_s)
        await service.directory.move(record.session.lease, lane=first.lane, ingress="another")
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.ABORTED, Reason.TAKEN_OVER)
        assert len(service.sessions) == 0


async def test_a_directory_that_came_back_empty_stops_no_session() -> None:
    async with running(directory={"lease_s": 1.2}) as service, RawStream(service.address) as stream:
        opened = await stream.start()
        record = service.sessions[opened.session_id]
        first = record.session.lease
        directory = service.directory
        assert isinstance(directory, MemoryDirectory)
        directory._entries.clear()
        await eventually(lambda: opened.session_id in directory._entries)
        assert directory._entries[opened.session_id].epoch == first.epoch
        await stream.frame(1)
        await stream.read_answers(1)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        await assert_nothing_held(service)


async def test_a_service_that_stops_tells_its_streams_and_releases_its_leases() -> None:
    async with running() as service, RawStream(service.address) as stream:
        await stream.start()
        for server in service.servers:
            await server.stop()
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
        assert end.retry_after_s is not None
        assert await service.directory.list(None) == []


async def test_a_service_that_stops_leaves_no_orphans() -> None:
    async with running(spans=PIPELINE) as service, RawStream(service.address) as stream:
        await stream.start()
        for server in service.servers:
            await server.stop()
        await eventually(lambda: [stage.num_sessions for stage in service.stages] == [0, 0, 0])


async def test_a_fault_while_a_picture_is_taken_ends_its_session_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as service, RawStream(service.address) as other, RawStream(service.address) as one:
        await other.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        opened = await one.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        session = service.sessions[opened.session_id].session

        def fail(_: object) -> None:
            raise KeyError("secret")

        monkeypatch.setattr(session, "on_frame", fail)
        await one.frame(0)
        end = await one.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
        assert set(end.metadata) == {"error_id"}
        assert "secret" not in repr(end)
        await other.frame(0)
        await other.read_answers(1)
        await assert_nothing_held(service, sessions=1)
