"""Around a change of size a session moves, is parked, loses replicas, connections and ingresses: no picture,
no drop and no size is another than in a session to which nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rearview.client import (
    BankOptions,
    Client,
    Dropped,
    DropPolicy,
    ImageFormat,
    Method,
    Notice,
    NoticeKind,
    Reconnect,
    SettingsChange,
    Translated,
)
from rearview.client.aio import Frame
from rearview.client.options import OpenOptions
from rearview.contract.memories import BankPolicy
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import cut_at, several
from support.pocket_sessions import lose, session_of
from support.raw_stream import OPERATORS, RawStream, assert_nothing_held, eventually, quickly_stopped
from support.resizes import (
    FRAMES,
    HALVES,
    LARGE,
    SIZES,
    config,
    image,
    play,
    size_at,
    start,
    write_model,
)
from support.service import InProcessService, in_process_service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.02)
OPTIONS: dict[str, OpenOptions] = {
    "bank": {
        "method": Method.STREAMV2V,
        "feature_bank": BankOptions(policy=BankPolicy.QUEUE, interval=2, max_frames=2),
    },
    "cache": {"method": Method.LIVE2DIFF},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_model(tmp_path_factory.mktemp("tiny"))


async def whole(service: InProcessService, method: str) -> list[bytes]:
    stream = await start(service.address, method)
    await play(stream, range(FRAMES), answers=0)
    await stream.half_close()
    await stream.read_to_end()
    assert stream.moves == []
    assert len(stream.answers) == FRAMES
    await stream.__aexit__()
    return [answer.frame.image for answer in stream.answers]


async def finish(stream: RawStream, sent: int) -> list[bytes]:
    """All pictures once the rest is sent."""
    await play(stream, range(sent, FRAMES), answers=0)
    await stream.half_close()
    await stream.read_to_end()
    assert stream.drops == []
    assert stream.indices == list(range(FRAMES))
    found = [answer.frame for answer in stream.answers]
    assert [(each.width, each.height) for each in found] == [tuple(size_at(n)) for n in range(FRAMES)]
    await stream.__aexit__()
    return [each.image for each in found]


@pytest.mark.parametrize("spans", [(OPERATORS,), HALVES], ids=["fused", "pipeline"])
@pytest.mark.parametrize("method", ["bank", "cache"])
async def test_a_session_that_leaves_its_replicas_around_a_change_goes_on_bit_by_bit(
    model: dict[str, Any], method: str, spans: Sequence[Sequence[str]]
) -> None:
    """By a drain before the first change, with frames on their way, and by losses right after the others."""
    with quickly_stopped():
        async with in_process_service(config(model, spans, replicas=3)) as service:
            expected, stream = await whole(service, method), await start(service.address, method)
            # Before the change: a session whose client waits does not leave in the warm-up behind it.
            await play(stream, range(4), answers=2)
            session = session_of(service, stream)
            first = session.lane.replicas
            stage = next(each for each in service.stages if each.describe()["replica_id"] == first[-1])
            draining = asyncio.create_task(stage.drain(20.0))
            await eventually(lambda: session.lane.replicas != first)
            await play(stream, range(4, 9), answers=8)
            await draining
            await lose(service, session_of(service, stream).lane.replicas[0])
            await play(stream, range(9, 13), answers=10)
            await eventually(lambda: session_of(service, stream).feed.is_attached)
            assert await finish(stream, 13) == expected
            assert set(stream.moves) == {pb.CONTINUITY_EXACT}
            assert len(stream.moves) >= 2


@pytest.mark.parametrize("method", ["bank", "cache"])
@pytest.mark.parametrize("sent", [4, 6, 8])
async def test_a_session_that_is_parked_and_resumed_keeps_size_pictures_and_what_it_declared(
    model: dict[str, Any], method: str, sent: int
) -> None:
    recovery = {"checkpoint_interval_s": 0.02, "park_after_s": 0}
    with quickly_stopped():
        async with in_process_service(config(model, recovery=recovery)) as service:
            expected, stream = await whole(service, method), await start(service.address, method)
            pictures = [each.image for each in await play(stream, range(sent), answers=sent)]
            if sent in SIZES:
                await stream.control(1, width=SIZES[sent].width, height=SIZES[sent].height)
                await stream.read()
            session, opened = session_of(service, stream), stream.opened
            await stream.__aexit__()
            await eventually(lambda: session.past.is_parked)
            again = RawStream(service.address)
            told = await again.resume(opened, sent)
            size = size_at(sent)
            assert (told.width, told.height) == (told.settings.width, told.settings.height) == size
            (lease,) = await service.directory.list(None)
            assert lease.load.pixels_per_s == lease.load.frames_per_s * size.pixels
            for number in range(sent, FRAMES):
                if number in SIZES and number != sent:
                    await again.control(number, width=SIZES[number].width, height=SIZES[number].height)
                while number >= again.frame_credit:
                    await again.read_answers(1)
                await again.frame(number, image(number), pb.IMAGE_FORMAT_RGB)
            await again.half_close()
            await again.read_to_end()
            assert pictures + [answer.frame.image for answer in again.answers] == expected
            await again.__aexit__()
            await assert_nothing_held(service)


def items() -> list[Frame | SettingsChange]:
    found: list[Frame | SettingsChange] = []
    for number in range(FRAMES):
        if number in SIZES:
            found.append(SettingsChange(width=SIZES[number].width, height=SIZES[number].height))
        found.append(Frame(image(number), index=number, format=ImageFormat.RGB))
    return found


async def translated(addresses: Sequence[str], method: str) -> tuple[list[Translated], list[int]]:
    """The pictures, and the gaps of the notices."""
    found, gaps = [], []
    async with Client(addresses, reconnect=QUICK) as client:
        answers = client.translate_frames(
            items(),
            prompt="a",
            width=LARGE.width,
            height=LARGE.height,
            drop_policy=DropPolicy.LOSSLESS,
            answer_format=ImageFormat.RGB,
            **OPTIONS[method],
        )
        async for answer in answers:
            assert not isinstance(answer, Dropped), answer
            if isinstance(answer, Translated):
                assert answer.frame_index == len(found)
                found.append(answer)
            elif isinstance(answer, Notice) and answer.kind is NoticeKind.RESIZED:
                gaps.append(answer.gap_frames)
    return found, gaps


@pytest.mark.parametrize("method", ["bank", "cache"])
async def test_an_ingress_that_dies_around_a_change_costs_no_picture_and_no_size(
    model: dict[str, Any], method: str
) -> None:
    """The client sends again what nobody has answered, under the sizes that it was sent in."""
    async with several(1, config(model, HALVES)) as service:
        expected, gaps = await translated(service.addresses, method)
        assert gaps == [0, 0, 0]
        assert [each.image.shape[:2] for each in expected] == [size_at(n)[::-1] for n in range(FRAMES)]
        for number in (9, 14, 20, 26, 33, 40):
            doomed = await service.add()
            with cut_at(doomed, number) as cut:
                found, gaps = await translated([doomed.address, service.addresses[0]], method)
            assert cut.is_dead, number
            assert [each.data for each in found] == [each.data for each in expected], f"cut at {number}"
            assert [(e.width, e.height) for e in found] == [size_at(n) for n in range(FRAMES)]
            assert gaps[:2] == [0, 0], "the cut is around one of three changes at the most"


async def test_the_client_sends_arrays_of_the_size_to_which_its_controls_lead(model: dict[str, Any]) -> None:
    large, small, flat = (np.zeros((side, 128, 3), np.uint8) for side in (128, 64, 32))
    options: OpenOptions = {"width": 128, "height": 128, "drop_policy": DropPolicy.LOSSLESS}
    async with (
        several(1, config(model)) as service,
        Client(service.address) as client,
        client.open(prompt="a", **options) as session,
    ):
        await session.send(large)
        await session.control(height=64)
        with pytest.raises(ValueError, match=r"\(64, 128, 3\), not uint8 \(128, 128, 3\)"):
            await session.send(large)
        await session.send(small)
        await session.control(height=32)
        await session.send(flat)
        refused = await _until_refused(session)
        assert (refused.width, refused.height) == (128, 64)
        await session.send(small)
        await session.finish()
        *_, last = [answer async for answer in session]
        assert isinstance(last, Translated)
        assert last.image.shape == (64, 128, 3)


async def _until_refused(session: Any) -> Any:
    async for answer in session:
        if getattr(answer, "rejected_reason", None) is not None:
            return answer.settings
    raise AssertionError("nothing was refused")
