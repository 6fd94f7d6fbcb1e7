"""What a client that lags still gets after its ingress was killed, and what it costs others if it never
acknowledges."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from rearview.config import ServiceConfig, load_config
from rearview.engine.engine import Engine
from rearview.errors import DropReason
from rearview.ingress.left import LeftAnswers
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import crash, several
from support.raw_stream import RawStream, index
from support.tiny import SIZE, write_tiny_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PIXELS = SIZE * SIZE * 3
FRAMES = 24


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServiceConfig:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("tiny")
    model = {"checkpoint": str(write_tiny_checkpoint(folder / "checkpoint")), "width": SIZE, "height": SIZE}
    spans = [{"name": "one", "operators": ["encode", "denoise-0", "denoise-1", "decode"], "replicas": 2}]
    return load_config({"model": model, "spans": spans, "ingress": {"port": 0}, "link": {"secret": "s"}})


@pytest.fixture
def room_for_ten() -> Iterator[None]:
    """As there is for pictures of 512 x 512, of which two here may stay in pixels."""
    kept = mock.patch.dict(Engine.__init__.__kwdefaults__ or {}, retained_bytes=10 * PIXELS)
    with kept, mock.patch.object(LeftAnswers.__init__, "__defaults__", (2 * PIXELS,)):
        yield


def image(number: int) -> bytes:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([rows + 5 * number, columns + 3 * number, rows + columns], -1).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


async def answered(stream: RawStream, numbers: Sequence[int]) -> list[pb.TranslateResponse]:
    """Send these frames as credit allows, and read their answers; acknowledge none."""

    async def send() -> None:
        for number in numbers:
            while stream.frame_credit <= number:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await stream.frame(number, image(number), pb.IMAGE_FORMAT_JPEG)

    sending = asyncio.create_task(send())
    answers = await stream.read_answers(len(numbers))
    await sending
    return answers


def same(one: Sequence[pb.TranslateResponse], other: Sequence[pb.TranslateResponse]) -> bool:
    return [(index(a), a.frame.image) for a in one] == [(index(b), b.frame.image) for b in other]


@pytest.mark.usefixtures("room_for_ten")
async def test_a_client_that_lags_gets_the_very_answers_that_its_dead_ingress_had(
    config: ServiceConfig,
) -> None:
    async with several(2, config) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            answers = await answered(first, range(FRAMES))
            await crash(service.servers[0])
        async with RawStream(service.addresses[1]) as second:
            assert (await second.resume(opened, 4)).received_frames == FRAMES
            again = await second.read_answers(FRAMES - 4)
            assert second.drops == []
            assert same(again, answers[4:]), "bit by bit, encoded once"
            assert len(await answered(second, range(FRAMES, FRAMES + 4))) == 4


@pytest.mark.usefixtures("room_for_ten")
async def test_what_is_lacked_goes_with_a_session_that_moves(config: ServiceConfig) -> None:
    async with several(2, config) as service:
        async with RawStream(service.addresses[0]) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            answers = await answered(first, range(8))
            session = service.ingresses[0].sessions[opened.session_id].session
            (elsewhere,) = {str(stage.describe()["replica_id"]) for stage in service.stages} - set(
                session.lane.replicas
            )
            await service.ingresses[0]._moving.moves.move(session, session.lane, (elsewhere,))
            answers += await answered(first, range(8, 12))
            await crash(service.servers[0])
        async with RawStream(service.addresses[1]) as second:
            assert (await second.resume(opened, 2)).received_frames == 12
            again = await second.read_answers(10)
            assert second.drops == []
            assert same(again[:6], answers[2:8])


async def test_what_is_too_much_is_dropped_with_a_word_and_the_newest_is_kept(config: ServiceConfig) -> None:
    limit = 12_000
    small = mock.patch.dict(Engine.__init__.__kwdefaults__ or {}, retained_bytes=limit)
    with small, mock.patch.object(LeftAnswers.__init__, "__defaults__", (0,)):
        async with several(2, config) as service:
            async with RawStream(service.addresses[0]) as first:
                opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
                answers = await answered(first, range(FRAMES))
                await crash(service.servers[0])
            async with RawStream(service.addresses[1]) as second:
                await second.resume(opened, 0)
                again = await second.read_answers(FRAMES)
                gone = len(second.drops)
                assert second.drops == [DropReason.FAULT] * gone
                assert [index(answer) for answer in again] == list(range(FRAMES))
                assert same(again[gone:], answers[gone:])
            assert 0 < gone < FRAMES
            counted = sum(
                stage._metrics.registry.get_sample_value("rearview_outputs_forgotten_total", {"span": "one"})
                or 0.0
                for stage in service.stages
            )
            assert counted >= gone
