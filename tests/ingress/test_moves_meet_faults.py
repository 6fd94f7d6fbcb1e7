"""Moves, recoveries and parking in the middle of which something else happens: nothing is lost or stuck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rearview.directory.protocol import DirectoryUnavailable
from rearview.ingress.leases import Leases
from rearview.ingress.past import Checkpoint
from rearview.ingress.service import Ingress
from rearview.replica.stage import Stage
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.planted import SlowPrepare
from support.pocket_sessions import FRAMES, FUSED, HALVES, lose, play, pocket, session_of, start, whole
from support.raw_stream import OPERATORS, RawStream, assert_nothing_held, eventually, running
from support.service import InProcessService

pytestmark = pytest.mark.integration

Call = Callable[..., Awaitable[Any]]


def stage_of(service: InProcessService, replica_id: str) -> Stage:
    return next(stage for stage in service.stages if stage.describe()["replica_id"] == replica_id)


@asynccontextmanager
async def drained(service: InProcessService, replica_id: str) -> AsyncIterator[Stage]:
    """The replica drains meanwhile, and has no session in the end."""
    stage = stage_of(service, replica_id)
    draining = asyncio.create_task(stage.drain(20.0))
    yield stage
    await draining
    assert stage.num_sessions == 0


def once_a_move_has_opened(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[None]]
) -> None:
    """`then` comes once between the new lane of a move and its compare-and-set."""
    lanes, leases = ingress._lanes, ingress._leases
    opens, sets = lanes.open, leases.move
    has_opened: list[bool] = []

    async def open_(*args: Any) -> Any:
        lane = await opens(*args)
        has_opened.append(True)
        return lane

    async def move(*args: Any) -> Any:
        if has_opened:
            monkeypatch.undo()
            await then()
        return await sets(*args)

    monkeypatch.setattr(lanes, "open", open_)
    monkeypatch.setattr(leases, "move", move)


def leases_of(service: InProcessService, stream: RawStream) -> Leases:
    return service.holder(stream.opened.session_id)._leases


async def away() -> None:
    raise DirectoryUnavailable


@pytest.mark.parametrize(
    ("spans", "replicas"), [(FUSED, (2,)), (HALVES, (1, 2))], ids=["another replica", "one replica of both"]
)
async def test_a_move_that_fails_late_is_tried_again_or_recovered_from(
    monkeypatch: pytest.MonkeyPatch, spans: Any, replicas: Any
) -> None:
    async with pocket(spans, replicas) as service:
        expected = await whole(service, "bank")
        stream = await start(service.address, "bank")
        await play(stream, range(5), answers=5)
        once_a_move_has_opened(service.holder(stream.opened.session_id), monkeypatch, away)
        async with drained(service, session_of(service, stream).lane.replicas[-1]):
            assert await play(stream, range(5, FRAMES), answers=FRAMES) == expected
        while not stream.moves:
            assert await stream.read() is not None, await stream.end()
        assert set(stream.moves) == {pb.CONTINUITY_EXACT}
        await assert_nothing_held(service, sessions=1)
        await stream.__aexit__()


async def test_the_new_lane_may_be_lost_before_the_move_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pocket(replicas=3) as service:
        expected = await whole(service, "bank")
        stream = await start(service.address, "bank")
        await play(stream, range(5), answers=5)
        lanes = service.holder(stream.opened.session_id)._lanes
        first = session_of(service, stream).lane.replicas[0]

        async def lose_the_new() -> None:
            (new,) = (
                stage
                for stage in service.stages
                if stage.num_sessions and stage_of(service, first) is not stage
            )
            await lose(service, str(new.describe()["replica_id"]))
            await eventually(lambda: len(lanes._fleet.lanes) == 1)

        once_a_move_has_opened(service.holder(stream.opened.session_id), monkeypatch, lose_the_new)
        async with drained(service, first):
            assert await play(stream, range(5, FRAMES), answers=FRAMES) == expected
        while not stream.moves:
            assert await stream.read() is not None, await stream.end()
        assert set(stream.moves) == {pb.CONTINUITY_EXACT}
        await stream.__aexit__()


async def test_a_replica_that_drains_while_a_lane_opens_is_left(plant_model: Any) -> None:
    plant_model(SlowPrepare(0.2))
    async with running(replicas=2) as service, RawStream(service.address) as stream:
        request = pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))
        await stream.write(request)
        opening = lambda: [stage for stage in service.stages if stage._sessions._opening]  # noqa: E731
        await eventually(lambda: bool(opening()))
        async with drained(service, opening()[0].describe()["replica_id"]):
            response = await stream.read()
            assert response is not None, await stream.end()
            await stream.frame(0)
            await stream.read_answers(1)


@pytest.mark.two_ingresses
async def test_sessions_are_recovered_while_their_ingress_drains() -> None:
    async with running(replicas=2, spans=(OPERATORS,)) as service, RawStream(service.address) as stream:
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.frame(0)
        await stream.read_answers(1)
        for ingress in service.ingresses:
            ingress.drain()
        await lose(service, service.sessions[opened.session_id].session.lane.replicas[0])
        await stream.frame(1)
        await stream.read_answers(1)
        assert stream.moves == [pb.CONTINUITY_EXACT]


async def test_a_lane_that_is_lost_while_its_session_is_parked_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pocket(park_after_s=0.02) as service:
        expected = await whole(service, "bank")
        stream = await start(service.address, "bank")
        await play(stream, range(5), answers=5)
        session, leases = session_of(service, stream), leases_of(service, stream)
        moves, lost = leases.move, session.lane

        async def move(*args: Any) -> Any:
            monkeypatch.undo()
            await lose(service, lost.replicas[0])
            await eventually(lambda: not session.feed.is_in(lost))
            return await moves(*args)

        monkeypatch.setattr(leases, "move", move)
        await stream.__aexit__()
        await eventually(lambda: session.past.is_parked)
        await eventually(lambda: all(stage.num_sessions == 0 for stage in service.stages))
        await goes_on(service, stream, expected)


@pytest.mark.one_ingress("another one tells the stream to come again")
@pytest.mark.parametrize("comes_back", ["before the answer", "after it"])
async def test_a_stream_that_comes_back_while_its_session_is_parked_finds_a_lane(
    monkeypatch: pytest.MonkeyPatch, comes_back: str
) -> None:
    async with pocket(park_after_s=0.02) as service:
        expected = await whole(service, "bank")
        stream = await start(service.address, "bank")
        await play(stream, range(5), answers=5)
        session, leases = session_of(service, stream), leases_of(service, stream)
        moves, asked, goes = leases.move, asyncio.Event(), asyncio.Event()

        async def move(lease: Any, replicas: Any) -> Any:
            moved = (
                moves(lease, replicas) if comes_back == "before the answer" else await moves(lease, replicas)
            )
            asked.set()
            await goes.wait()
            return await moved if comes_back == "before the answer" else moved

        with monkeypatch.context() as slow:
            slow.setattr(leases, "move", move)
            await stream.__aexit__()
            await asked.wait()
            again = RawStream(service.address)
            await again.resume(stream.opened, received=5)
        goes.set()
        pictures = await play(again, range(5, FRAMES), answers=FRAMES - 5)
        assert [answer.frame.image for answer in stream.answers] + pictures == expected
        lease = (await service.directory.owner_of(stream.opened.session_id)).lease
        assert (lease.lane, lease.epoch) == (session.lane.replicas, session.lease.epoch)
        await assert_nothing_held(service, sessions=1)
        await again.__aexit__()


async def test_a_checkpoint_that_comes_while_there_is_no_lane_changes_nothing() -> None:
    async with pocket(checkpoint_interval_s=1000) as service:
        stream = await start(service.address, "bank")
        await play(stream, range(5), answers=5)
        session = session_of(service, stream)
        session.lose_lane()
        session.keep(Checkpoint(3, [b"later than what the next lane opens from"]))
        assert (session.past.checkpoint, session.kept.first) == (None, 0)
        await stream.__aexit__()


async def goes_on(service: InProcessService, stream: RawStream, expected: list[bytes]) -> None:
    """Another connection resumes the session where `stream` has left it."""
    again = RawStream(service.address)
    await again.resume(stream.opened, received=len(stream.answers))
    pictures = await play(again, range(5, FRAMES), answers=FRAMES - 5)
    assert [answer.frame.image for answer in stream.answers] + pictures == expected
    await assert_nothing_held(service, sessions=1)
    await again.__aexit__()
