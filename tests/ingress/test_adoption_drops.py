"""Frames that are dropped before they enter a lane: the lane is told, and so who adopts the session knows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from rearview.contract.similarity import SimilaritySettings
from rearview.control.adoption import LaneStanding
from rearview.errors import DropReason
from rearview.ingress.adoption import Resumption, rebuilt
from rearview.ingress.coder import Coder, Decoded
from rearview.ingress.inherited import Inherited
from rearview.ingress.intake import Waiting
from rearview.ingress.notes import Note
from rearview.ingress.state import EdgeState
from rearview.v1 import translation_service_pb2 as pb
from support.edge import terms
from support.ingresses import crash, several
from support.raw_stream import OPERATORS, RawStream, eventually, null_config
from support.service import InProcessService

from loadtest.reliability.counters import scrape

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))
EMPTY = DropReason.IMAGE_EMPTY
FILTERED: dict[str, Any] = {
    "drop_policy": pb.DROP_POLICY_LOSSLESS,
    "similarity_filter": pb.SimilarityFilter(max_skip_frames=3),
}
STILL = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8).tobytes()


async def counted(service: InProcessService) -> Counter[str]:
    found = await scrape([server.metrics_url for server in service.servers])
    return +Counter({name: number for name, number in found.items() if name in ("translated", "dropped")})


async def opened_with(stream: RawStream, images: Sequence[bytes]) -> pb.Opened:
    """A session with these frames, whose answers have all come."""
    opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
    for number, image in enumerate(images):
        await stream.frame(3 * number, image)
    await stream.read_answers(len(images))
    return opened


@pytest.mark.parametrize("is_dead", [False, True], ids=["alive", "dead"])
async def test_a_drop_behind_the_last_admitted_frame_is_counted_once(is_dead: bool) -> None:
    """Its answer was lost: the client is told the same once more, and need not send the frame again."""
    async with several(2, null_config(spans=SPANS)) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await opened_with(first, (b"0", b"1", b"", b""))
            before = await counted(service)
            if is_dead:
                await crash(service.servers[0])
        async with RawStream(service.addresses[1]) as second:
            assert (await second.resume(opened, 2)).received_frames == 4
            await second.read_answers(2)
            assert (second.indices, second.drops) == ([6, 9], [EMPTY, EMPTY])
            assert await counted(service) == before == {"translated": 2, "dropped": 2}
            await second.frame(12, b"")
            await second.frame(15, b"5")
            await second.read_answers(2)
            assert (second.indices[2:], second.drops[2:]) == ([12, 15], [EMPTY])
            assert await counted(service) - before == {
                "translated": 1,
                "dropped": 1,
            }


async def test_what_was_dropped_while_frames_before_it_waited_stays_so_and_is_counted_once() -> None:
    decode = Coder.decode
    async with several(2, null_config()) as service:
        died = asyncio.Event()

        async def decode_the_first(coder: Coder, waiting: Waiting, *args: Any, **kwargs: Any) -> Decoded:
            if coder._executor is service.ingresses[0]._executor and waiting.frame.frame_index:
                await died.wait()
            return await decode(coder, waiting, *args, **kwargs)

        with mock.patch.object(Coder, "decode", decode_the_first):
            async with RawStream(service.addresses[0]) as first:
                opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
                for number, image in enumerate((b"0", b"1", b"", b"3")):
                    await first.frame(number, image)
                await first.read_answers(1)
                session = service.ingresses[0].sessions[opened.session_id].session
                await eventually(lambda: session.received == 4)
                assert await counted(service) == {"translated": 1, "dropped": 1}
                await crash(service.servers[0])
                died.set()
            async with RawStream(service.addresses[1]) as second:
                assert (await second.resume(opened, 1)).received_frames == 1
                for number in (1, 2, 3):
                    await second.frame(number, b"%d" % number)
                await second.read_answers(3)
                assert (second.indices, second.drops) == ([1, 2, 3], [EMPTY])
                assert await counted(service) == {"translated": 3, "dropped": 1}


async def test_what_one_ingress_has_heard_of_drops_the_next_one_hears_too() -> None:
    async with several(3, null_config(spans=SPANS, replicas=2)) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await opened_with(first, (b"0", b"", b"2", b""))
        async with RawStream(service.addresses[1]) as second:
            assert (await second.resume(opened, 1)).received_frames == 4
            session = service.ingresses[1].sessions[opened.session_id].session
            elsewhere = tuple(
                next(r["replica_id"] for r in others if r["replica_id"] not in session.lane.replicas)
                for others in (
                    [s.describe() for s in service.stages if s.describe()["span"] == f"span-{span}"]
                    for span in range(len(SPANS))
                )
            )
            await service.ingresses[1]._moving.moves.move(session, session.lane, elsewhere)
            assert session.lane.replicas == elsewhere
            await crash(service.servers[1])
        async with RawStream(service.addresses[2]) as third:
            assert (await third.resume(opened, 1)).received_frames == 4
            await third.read_answers(3)
            assert (third.indices, third.drops) == ([3, 6, 9], [EMPTY, EMPTY])


async def test_a_still_picture_is_left_out_as_often_as_if_its_ingress_had_lived(
    image_checkpoint: str,
) -> None:
    """Three in a row may be left out; two were, at the ingress before."""
    async with several(2, null_config(model={"checkpoint": image_checkpoint})) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(**FILTERED)
            for number in range(3):
                await first.frame(number, STILL, pb.IMAGE_FORMAT_RGB)
            await first.read_answers(3)
            assert first.drops == [DropReason.UNCHANGED] * 2
            await crash(service.servers[0])
        async with RawStream(service.addresses[1]) as second:
            assert (await second.resume(opened, 2)).received_frames == 3
            for number in (3, 4):
                await second.frame(number, STILL, pb.IMAGE_FORMAT_RGB)
            answers = await second.read_answers(3)
            assert [answer.WhichOneof("message") for answer in answers] == ["dropped", "dropped", "frame"]
            assert second.drops == [DropReason.UNCHANGED] * 2


async def test_a_still_picture_is_left_out_as_often_where_its_session_was_parked(
    image_checkpoint: str,
) -> None:
    sections: dict[str, Any] = {"model": {"checkpoint": image_checkpoint}, "recovery": {"park_after_s": 0.02}}
    async with several(2, null_config(**sections)) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(**FILTERED)
            for number in range(3):
                await first.frame(number, STILL, pb.IMAGE_FORMAT_RGB)
            await first.read_answers(3)
            session = service.ingresses[0].sessions[opened.session_id].session
        await eventually(lambda: session.past.is_parked)
        async with RawStream(service.addresses[1]) as second:
            assert (await second.resume(opened, 3)).received_frames == 3
            for number in (3, 4):
                await second.frame(number, STILL, pb.IMAGE_FORMAT_RGB)
            answers = await second.read_answers(2)
            assert [answer.WhichOneof("message") for answer in answers] == ["dropped", "frame"]


AGREED = terms(similarity=SimilaritySettings())


def taken_over(dropped: dict[int, tuple[int, DropReason]], received_answers: int) -> Inherited:
    """Of a lane that has let in places 0 to 4, and has 3 and 4 still."""
    note = Note(AGREED.spec, AGREED.options, 3, True, EdgeState.at_open(AGREED), place=3, index=30)
    told = {place: (index, why.value) for place, (index, why) in dropped.items()}
    standing = LaneStanding(5, 4, 40, {3: 3, 4: 4}, True, note.to_json(), frozenset({3}), told)
    return rebuilt(note, standing, Resumption("0" * 32, "token", received_answers), 7.0)


def test_of_frames_that_the_client_sends_again_those_that_were_dropped_are_counted() -> None:
    """Place 5 waited when the ingress died, so that 6 and 7 had no answer yet, although they were dropped."""
    inherited = taken_over({6: (60, EMPTY), 7: (70, DropReason.RATE_LIMITED)}, 3)
    book = inherited.book
    assert book.received == 5
    assert [book.receive(index, (0, 0), 8.0).is_counted for index in (50, 60, 70, 80)] == [
        False,
        True,
        True,
        False,
    ]


def test_drops_between_admitted_frames_have_the_reason_that_the_lane_was_told() -> None:
    unchanged = DropReason.UNCHANGED
    inherited = taken_over({1: (10, unchanged), 2: (20, EMPTY), 5: (50, unchanged), 6: (60, unchanged)}, 1)
    book, state = inherited.book, inherited.state
    assert (book.received, book.dropped) == (7, 4)
    assert [(a.receipt.frame_index, a.outcome) for a in book.kept] == [(10, unchanged), (20, EMPTY)]
    assert (state.similarity.skipped, state.last_index) == (2, 60)
    known = taken_over({1: (10, unchanged)}, 0).book.kept
    assert known[0].outcome is DropReason.FAULT, "0 was admitted, and nobody has its picture"


def test_a_frame_that_is_in_the_lane_after_all_has_its_picture() -> None:
    inherited = taken_over({4: (40, EMPTY), 5: (50, EMPTY)}, 3)
    inherited.book.settle(3, b"3", 8.0)
    inherited.book.settle(4, b"4", 8.0)
    assert [answer.outcome for answer in inherited.book.kept] == [b"3", b"4", EMPTY]


def test_a_reason_of_a_later_release_is_a_fault() -> None:
    standing = LaneStanding(0, -1, -1, {}, True, None, dropped={0: (0, 99)})
    note = Note(AGREED.spec, AGREED.options, 3, True, EdgeState.at_open(AGREED))
    book = rebuilt(note, standing, Resumption("0" * 32, "token", 0), 7.0).book
    assert [answer.outcome for answer in book.kept] == [DropReason.FAULT]
