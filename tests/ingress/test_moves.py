"""Sessions with a past leave their replicas, by plan or by loss: pictures are those of one that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from rearview.replica.state import Origin
from rearview.v1 import translation_service_pb2 as pb
from support.pocket_sessions import (
    FRAMES,
    FUSED,
    HALVES,
    lose,
    play,
    pocket,
    session_of,
    start,
    whole,
)
from support.raw_stream import RawStream, assert_nothing_held, eventually

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("method", "spans"), [("per-frame", FUSED), ("bank", FUSED), ("cache", HALVES)])
async def test_a_drained_replica_is_left_and_no_picture_changes(
    method: str, spans: Sequence[Sequence[str]]
) -> None:
    async with pocket(spans) as service:
        expected = await whole(service, method)
        stream = await start(service.address, method)
        await play(stream, range(5), answers=5)
        before = session_of(service, stream).lane.replicas
        stage = next(s for s in service.stages if s.describe()["replica_id"] == before[-1])
        draining = asyncio.create_task(stage.drain(20.0))
        await play(stream, range(5, FRAMES), answers=FRAMES - 1)
        await draining
        assert stage.num_sessions == 0
        pictures = await play(stream, range(0), answers=FRAMES)
        assert stream.moves == [pb.CONTINUITY_EXACT]
        assert before[-1] not in session_of(service, stream).lane.replicas
        assert pictures == expected
        await stream.__aexit__()


@pytest.mark.parametrize(("method", "span"), [("per-frame", 1), ("bank", 0), ("cache", 1)])
async def test_a_lost_replica_costs_no_picture_after_a_checkpoint(method: str, span: int) -> None:
    async with pocket(HALVES) as service:
        expected = await whole(service, method)
        stream = await start(service.address, method)
        await play(stream, range(6), answers=6)
        session = session_of(service, stream)
        if method != "per-frame":
            await eventually(lambda: session.past.checkpointed == 5)
            assert session.kept.first == 6
        await lose(service, session.lane.replicas[span])
        pictures = await play(stream, range(6, FRAMES), answers=FRAMES)
        assert stream.moves == [pb.CONTINUITY_EXACT]
        assert pictures == expected
        await assert_nothing_held(service, sessions=1)
        await stream.__aexit__()


async def test_a_young_session_is_played_again_from_its_first_frame() -> None:
    async with pocket(checkpoint_interval_s=1000) as service:
        expected = await whole(service, "bank")
        stream = await start(service.address, "bank")
        await play(stream, range(5), answers=5)
        await lose(service, session_of(service, stream).lane.replicas[0])
        assert await play(stream, range(5, FRAMES), answers=FRAMES) == expected
        assert stream.moves == [pb.CONTINUITY_EXACT]
        # So that another loss does not cost all of it once more, however long the interval.
        await eventually(lambda: session_of(service, stream).past.checkpointed is not None)
        await stream.__aexit__()


@pytest.mark.parametrize(
    ("method", "room", "continuity"),
    [
        ("bank", None, pb.CONTINUITY_APPROXIMATE),
        ("bank", 3, pb.CONTINUITY_RESET),
        ("cache", 1, pb.CONTINUITY_RESET),
    ],
)
async def test_without_checkpoints_it_is_said_how_much_is_lost(
    method: str, room: int | None, continuity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pocket(checkpoint_bytes_per_s=0) as service:
        stream = await start(service.address, method)
        session = session_of(service, stream)
        if room is not None:  # As if images of so few frames had room.
            needed = session.past.needed
            monkeypatch.setattr(
                session.past, "needed", lambda kept: max(needed(kept), kept.unanswered - room)
            )
        await play(stream, range(16), answers=16)
        assert session.kept.following - session.kept.first == (room or 12)
        await lose(service, session.lane.replicas[0])
        await play(stream, range(16, 20), answers=20)
        assert stream.moves == [continuity]
        assert stream.drops == []
        await stream.__aexit__()


async def test_a_checkpoint_that_no_replica_can_read_costs_the_past_and_not_the_session() -> None:
    async with pocket() as service:
        stream = await start(service.address, "bank")
        await play(stream, range(6), answers=6)
        session = session_of(service, stream)
        await eventually(lambda: session.past.checkpointed == 5)
        for stage in service.stages:
            stage._transfers._origin = Origin("another model", "float32")
        await lose(service, session.lane.replicas[0])
        await play(stream, range(6, FRAMES), answers=FRAMES)
        assert stream.moves == [pb.CONTINUITY_RESET]
        assert stream.drops == []
        await stream.__aexit__()


@pytest.mark.parametrize(("method", "spans"), [("per-frame", FUSED), ("bank", HALVES), ("cache", FUSED)])
async def test_a_parked_session_holds_no_slot_and_goes_on_as_if_it_had_stayed(
    method: str, spans: Sequence[Sequence[str]]
) -> None:
    async with pocket(spans, replicas=1, park_after_s=0) as service:
        expected = await whole(service, method)
        stream = await start(service.address, method)
        await play(stream, range(5), answers=5)
        session = session_of(service, stream)
        await stream.__aexit__()
        await eventually(lambda: session.past.is_parked)
        await eventually(lambda: all(stage.num_sessions == 0 for stage in service.stages))
        assert (await service.directory.usage_by_replica()) == {}
        goes_elsewhere = len(service.ingresses) > 1
        again = RawStream(service.address)
        opened = await again.resume(stream.opened, received=len(stream.answers))
        assert opened.received_frames == 5
        assert opened.continuity == pb.CONTINUITY_EXACT
        pictures = await play(again, range(5, FRAMES), answers=FRAMES - 5)
        assert again.moves == ([] if goes_elsewhere else [pb.CONTINUITY_EXACT])
        assert [answer.frame.image for answer in stream.answers] + pictures == expected
        await assert_nothing_held(service, sessions=1)
        await again.__aexit__()
