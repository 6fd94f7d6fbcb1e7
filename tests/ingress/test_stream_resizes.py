"""A control that changes the size of frames, over the wire: answered, refused and charged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import simplejpeg
import yaml
from rearview.contract.lease import Load
from rearview.directory import DirectoryUnavailable
from rearview.errors import DropReason, Reason
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import OPERATORS, RawStream, quickly_stopped
from support.resizes import (
    FRAMES,
    HALVES,
    LARGE,
    METHODS,
    SIZES,
    TALL,
    WIDE,
    config,
    image,
    play,
    size_at,
    start,
    write_model,
)
from support.service import in_process_service
from support.tokens import sha256

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

RAW = pb.IMAGE_FORMAT_RGB


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_model(tmp_path_factory.mktemp("tiny"))


def resized(stream: RawStream) -> list[int]:
    """Gaps of the notices that the size has changed."""
    notices = [r.notice for r in stream.received if r.HasField("notice")]
    return [notice.gap_frames for notice in notices if notice.kind == pb.Notice.KIND_RESIZED]


def applied(stream: RawStream) -> list[pb.ControlApplied]:
    return [r.control_applied for r in stream.received if r.HasField("control_applied")]


@pytest.mark.parametrize("spans", [(OPERATORS,), HALVES], ids=["fused", "pipeline"])
@pytest.mark.parametrize("method", METHODS)
async def test_pictures_are_those_of_sessions_opened_with_the_size_and_none_is_missing(
    model: dict[str, Any], method: str, spans: Sequence[Sequence[str]]
) -> None:
    """Noise is fixed and a bank's writes begin anew with it, so that ordinals from 0 give the same."""
    with quickly_stopped():
        async with in_process_service(config(model, spans)) as service:
            stream = await start(service.address, method)
            await play(stream, range(FRAMES), answers=0)
            await stream.half_close()
            assert (await stream.read_to_end()).code is grpc.StatusCode.OK
            pictures = [answer.frame for answer in stream.answers]
            assert [picture.frame_index for picture in pictures] == list(range(FRAMES))
            assert [(p.width, p.height) for p in pictures] == [tuple(size_at(n)) for n in range(FRAMES)]
            assert resized(stream) == [0, 0, 0]
            told = [(c.received_frames, c.settings.width, c.settings.height) for c in applied(stream)]
            assert told == [(at, *size) for at, size in SIZES.items()]
            begins = [0, *SIZES]
            for begin, end in zip(begins, [*begins[1:], FRAMES], strict=True):
                alone = await start(service.address, method, size_at(begin))
                for number in range(begin, end):
                    await alone.frame(number, image(number), RAW)
                await alone.half_close()
                await alone.read_to_end()
                expected = [answer.frame.image for answer in alone.answers]
                assert [p.image for p in pictures[begin:end]] == expected, f"frames {begin} to {end}"
                await alone.__aexit__()
            await stream.__aexit__()


BAD_SIZES = [
    ({"width": 100}, Reason.RESOLUTION_UNSUPPORTED),
    ({"height": 32}, Reason.RESOLUTION_UNSUPPORTED),
    ({"width": 2048, "height": 2048}, Reason.RESOLUTION_UNSUPPORTED),
]


@pytest.mark.parametrize("method", METHODS)
async def test_a_size_that_cannot_be_is_refused_and_the_stream_goes_on(
    model: dict[str, Any], method: str
) -> None:
    """Also where frames have come in it, more of them than would end the stream."""
    no_room = ({"width": 256}, Reason.RESOLUTION_UNSUPPORTED)
    not_whole = ({"width": 72}, Reason.RESOLUTION_UNSUPPORTED)
    asked = [
        *BAD_SIZES,
        *([no_room] if method != "per-frame" else []),
        *([not_whole] if method == "cache" else []),
    ]
    with quickly_stopped():
        async with (
            in_process_service(config(model)) as service,
            await start(service.address, method) as stream,
        ):
            opened = stream.opened
            for number, (settings, reason) in enumerate(asked):
                await stream.control(number, **settings)
                response = await stream.read()
                assert response is not None
                told, name = response.control_applied, f"ERROR_REASON_{reason.name}"
                assert told.rejected_reason == errors_pb.ErrorReason.Value(name), settings
                assert told.settings == opened.settings
            for number in range(12):
                await stream.frame(number, image(0, WIDE), RAW)
            await stream.read_answers(12)
            assert stream.drops == [DropReason.IMAGE_SIZE_MISMATCH] * 12
            for number in (12, 13):
                await stream.frame(number, image(number, LARGE), RAW)
            assert [each.HasField("frame") for each in await stream.read_answers(2)] == [True] * 2
            for number in range(14, 24):
                await stream.frame(number, image(0, WIDE), RAW)
            assert (await stream.read_to_end()).reason is Reason.TOO_MANY_BAD_FRAMES


async def test_frames_that_came_in_the_wrong_size_are_the_gap(model: dict[str, Any]) -> None:
    """A raw frame after the control has the new size, whatever its client has heard by then."""
    with quickly_stopped():
        async with in_process_service(config(model)) as service:
            stream = await start(service.address, "per-frame")
            await stream.frame(0, image(0, LARGE), RAW)
            await stream.control(1, width=WIDE.width, height=WIDE.height)
            for number in (1, 2, 3):
                await stream.frame(number, image(number, LARGE), RAW)
            await stream.frame(4, image(4, WIDE), RAW)
            await stream.read_answers(5)
            assert stream.drops == [DropReason.IMAGE_SIZE_MISMATCH] * 3
            assert resized(stream) == [3]
            order = [each.WhichOneof("message") for each in stream.received]
            assert order[-2:] == ["notice", "frame"]
            await stream.__aexit__()


async def test_of_one_side_the_other_stays_zero_is_as_opened_and_jpeg_pictures_have_the_size(
    model: dict[str, Any],
) -> None:
    with quickly_stopped():
        async with in_process_service(config(model)) as service:
            stream = await start(service.address, "bank", answer_format=pb.IMAGE_FORMAT_JPEG)
            await stream.control(0, width=TALL.width)
            await stream.control(1, width=0, height=TALL.height // 2)
            pixels = np.zeros((64, 128, 3), np.uint8)
            await stream.frame(0, simplejpeg.encode_jpeg(pixels, colorspace="RGB"), pb.IMAGE_FORMAT_JPEG)
            (answer,) = await stream.read_answers(1)
            assert (answer.frame.width, answer.frame.height) == (128, 64)
            assert simplejpeg.decode_jpeg_header(answer.frame.image)[:2] == (64, 128)
            assert resized(stream) == []
            await stream.__aexit__()


async def test_the_size_that_it_was_opened_with_changes_nothing_however_it_is_said(
    model: dict[str, Any],
) -> None:
    """A cache would begin anew, and an instant start repeat frames for it."""
    cache = {"temporal_cache": pb.TemporalCache(instant_start=True)}
    pictures = []
    with quickly_stopped():
        async with in_process_service(config(model)) as service:
            for said in ({}, {"width": 0, "height": 0}, {"width": LARGE.width, "height": LARGE.height}):
                stream = await start(service.address, "cache", LARGE, **cache)
                for number in range(8):
                    if number == 5 and said:
                        await stream.control(number, **said)
                    await stream.frame(number, image(0, LARGE), RAW)
                await stream.half_close()
                await stream.read_to_end()
                pictures.append([answer.frame.image for answer in stream.answers])
                await stream.__aexit__()
    assert len(pictures[0]) == 8
    assert pictures[1] == pictures[0]
    assert pictures[2] == pictures[0]


async def test_a_size_is_charged_before_it_takes_effect_and_refused_beyond_the_quota(
    model: dict[str, Any], tmp_path: Path
) -> None:
    """A tenant with pixels for one and a half large sessions: a small one beside it keeps the other small."""
    most = 30.0 * 1.5 * LARGE.pixels
    tenant = {"name": "alpha", "token_sha256": sha256("alpha"), "max_pixels_per_s": most}
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump([tenant]))

    async def loads() -> list[float]:
        return sorted(lease.load.pixels_per_s / 30.0 for lease in await service.directory.list("alpha"))

    with quickly_stopped():
        async with in_process_service(config(model, tenants_file=str(path))) as service:
            first = await start(service.address, "per-frame", WIDE, token="alpha", frame_rate=30.0)
            second = await start(service.address, "per-frame", WIDE, token="alpha", frame_rate=30.0)
            for number, stream in enumerate((first, second)):
                await stream.control(number, width=LARGE.width, height=LARGE.height)
                await stream.read()
            grown, refused = applied(first)[0], applied(second)[0]
            assert grown.rejected_reason == errors_pb.ERROR_REASON_UNSPECIFIED
            assert refused.rejected_reason == errors_pb.ERROR_REASON_TENANT_RATE_EXHAUSTED
            assert (refused.settings.width, refused.settings.height) == WIDE
            assert await loads() == [WIDE.pixels, LARGE.pixels]
            await play(second, range(2), answers=2, sizes={0: WIDE})
            await play(first, range(2), answers=2, sizes={0: WIDE})
            assert await loads() == [WIDE.pixels, WIDE.pixels]
            assert (await service.directory.list("alpha"))[0].load == Load(30.0, 30.0 * WIDE.pixels)
            for stream in (first, second):
                await stream.__aexit__()


async def test_a_directory_that_does_not_answer_refuses_the_size_and_ends_nothing(
    model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with quickly_stopped():
        async with in_process_service(config(model)) as service:
            stream = await start(service.address, "per-frame")

            async def charge(*_: object) -> None:
                raise DirectoryUnavailable

            monkeypatch.setattr(service.directory, "charge", charge)
            await stream.control(1, width=WIDE.width, height=WIDE.height)
            response = await stream.read()
            assert response is not None
            assert response.control_applied.rejected_reason == errors_pb.ERROR_REASON_DIRECTORY_UNAVAILABLE
            await play(stream, range(3), answers=3, sizes={})
            await stream.__aexit__()
