"""The quality of answers as a live control: it acts at the edge, and the engine does not hear of it."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
import simplejpeg
from rearview.errors import Reason
from rearview.ingress.lane import LaneSender
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import RawStream, running
from support.service import InProcessService

pytestmark = pytest.mark.integration

STILL = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
LIVE: dict[str, Any] = {"drop_policy": pb.DROP_POLICY_LOSSLESS}


def jpeg(quality: int) -> bytes:
    """What the answer to STILL is, byte for byte: the networks of `image_checkpoint` do nothing."""
    data: bytes = simplejpeg.encode_jpeg(STILL, quality, "RGB", "420")
    return data


async def send(stream: RawStream, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await stream.frame(number, STILL.tobytes(), format=pb.IMAGE_FORMAT_RGB)


async def applied(stream: RawStream) -> pb.ControlApplied:
    """The next answer to a control."""
    while (response := await stream.read()) is not None:
        if response.HasField("control_applied"):
            return response.control_applied
    raise AssertionError("the call has ended")


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions of settings that were sent into a lane."""
    versions: list[int] = []
    plain = LaneSender.send_settings

    def send_settings(self: LaneSender, lane: Any, version: int, settings: Any) -> Any:
        versions.append(version)
        return plain(self, lane, version, settings)

    monkeypatch.setattr(LaneSender, "send_settings", send_settings)
    return versions


def ordinals(service: InProcessService) -> int:
    (record,) = service.sessions
    return record.session.state.next_ordinal


async def test_answers_have_the_quality_that_their_frames_were_sent_under(
    image_checkpoint: str, announced: list[int]
) -> None:
    """All is sent at once: frames that wait when a control comes keep their quality."""
    async with (
        running(model={"checkpoint": image_checkpoint}) as service,
        RawStream(service.address) as stream,
    ):
        opened = await stream.start(**LIVE)
        assert opened.settings.jpeg_quality == 85
        await send(stream, 3)
        await stream.control(1, jpeg_quality=20)
        await send(stream, 2, first=3)
        await stream.control(2, jpeg_quality=95)
        await send(stream, 1, first=5)
        answers = await stream.read_answers(6)
        assert [a.frame.image for a in answers] == [jpeg(q) for q in (85, 85, 85, 20, 20, 95)]
        echoed = [r.control_applied for r in stream.received if r.HasField("control_applied")]
        assert [(c.settings.jpeg_quality, c.received_frames) for c in echoed] == [(20, 3), (95, 5)]
        assert ordinals(service) == 6
        assert announced == [], "no engine hears of it"
        await stream.control(3, strength=0.9, jpeg_quality=50)
        await send(stream, 1, first=6)
        (answer,) = await stream.read_answers(1)
        assert answer.frame.image == jpeg(50)
        assert announced == [1], "with another change it travels, and the versions have no gap"


async def test_a_still_frame_is_unchanged_also_under_another_quality(image_checkpoint: str) -> None:
    async with (
        running(model={"checkpoint": image_checkpoint}) as service,
        RawStream(service.address) as stream,
    ):
        await stream.start(**LIVE, similarity_filter=pb.SimilarityFilter(max_skip_frames=2))
        await send(stream, 1)
        await stream.control(1, jpeg_quality=20)
        await send(stream, 3, first=1)
        answers = await stream.read_answers(4)
        assert [a.WhichOneof("message") for a in answers] == ["frame", "dropped", "dropped", "frame"]
        assert {a.dropped.reason for a in answers[1:3]} == {errors_pb.DROP_REASON_UNCHANGED}
        assert [answers[0].frame.image, answers[3].frame.image] == [jpeg(85), jpeg(20)]
        assert ordinals(service) == 2


@pytest.mark.parametrize("quality", [0, 101, 2**32 - 1])
async def test_a_quality_out_of_range_is_refused_and_the_stream_goes_on(
    image_checkpoint: str, quality: int
) -> None:
    async with (
        running(model={"checkpoint": image_checkpoint}) as service,
        RawStream(service.address) as stream,
    ):
        opened = await stream.start(**LIVE, jpeg_quality=60)
        await stream.control(1, prompt="b", jpeg_quality=quality)
        refused = await applied(stream)
        assert refused.rejected_reason == errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE
        assert "jpeg_quality" in refused.advice
        assert refused.settings == opened.settings
        await send(stream, 1)
        (answer,) = await stream.read_answers(1)
        assert answer.frame.image == jpeg(60)


@pytest.mark.parametrize(
    ("of_open", "of_settings", "expected"), [(0, None, 85), (40, None, 40), (0, 30, 30), (40, 30, 30)]
)
async def test_what_the_settings_say_at_opening_goes_before_what_open_says(
    image_checkpoint: str, of_open: int, of_settings: int | None, expected: int
) -> None:
    async with (
        running(model={"checkpoint": image_checkpoint}) as service,
        RawStream(service.address) as stream,
    ):
        settings = settings_pb2.Settings(prompt="a", jpeg_quality=of_settings)
        opened = await stream.start(settings=settings, jpeg_quality=of_open, **LIVE)
        assert opened.settings.jpeg_quality == expected
        await send(stream, 1)
        (answer,) = await stream.read_answers(1)
        assert answer.frame.image == jpeg(expected)


@pytest.mark.parametrize(
    "fields", [{"jpeg_quality": 101}, {"settings": settings_pb2.Settings(prompt="a", jpeg_quality=0)}]
)
async def test_a_session_of_a_quality_out_of_range_is_not_opened(fields: dict[str, Any]) -> None:
    async with running() as service, RawStream(service.address) as stream:
        message = pb.Open(**{"settings": settings_pb2.Settings(prompt="a"), **fields})
        await stream.write(pb.TranslateRequest(open=message))
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.SETTING_OUT_OF_RANGE)
        assert end.metadata["field"] == "jpeg_quality"
