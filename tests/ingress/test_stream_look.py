"""Guidance, mixes, blends and the similarity filter, as a client meets them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from rearview.contract.blending import mix_at
from rearview.contract.chain import OperatorKind
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.model import Forward, Model, NullModel
from rearview.engine.rows import Row
from rearview.errors import DropReason, Reason
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import session_service_pb2, settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.frames import content, planes_of
from support.raw_stream import OPERATORS, RawStream, running
from torch import Tensor

pytestmark = pytest.mark.integration

SPANS = pytest.mark.parametrize(
    "spans", [(OPERATORS,), tuple((operator,) for operator in OPERATORS)], ids=["fused", "pipeline"]
)
STILL = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8).tobytes()
OTHER = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8).tobytes()


class Mixes(NullModel):
    """A picture is the weights of the prompts that it ran under, in percent."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        time.sleep(self._seconds)
        return Forward([planes_of(self._run(row)) for row in rows])

    def _run(self, row: Row) -> Tensor:
        if row.operator.kind is not OperatorKind.DENOISE:
            return content(row)
        text = " ".join(f"{one.prompt}{100 * one.weight:.0f}" for one in mix_at(row.settings, row.ordinal))
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def mixed(**weights: float) -> list[settings_pb2.WeightedPrompt]:
    return [settings_pb2.WeightedPrompt(prompt=prompt, weight=weight) for prompt, weight in weights.items()]


@SPANS
async def test_a_blend_takes_its_frames_and_no_dropped_one_counts(
    plant_model: Callable[[Model], None], spans: tuple[tuple[str, ...], ...]
) -> None:
    """Frames come faster than they are translated: the k-th translated frame is k/5 on the way."""
    plant_model(Mixes(seconds=0.005))
    async with running(spans=spans) as service, RawStream(service.address) as stream:
        await stream.start("a", drop_policy=pb.DROP_POLICY_LATEST)
        await stream.frame(0)
        await stream.read_answers(1)
        await stream.control(1, prompt="b", blend_frames=5)
        sent = 1
        while sum(answer.HasField("frame") for answer in stream.answers) < 8:
            while sent < stream.frame_credit:
                await stream.frame(sent)
                sent += 1
            await stream.read()
        pictures = [a.frame.image.decode() for a in stream.answers if a.HasField("frame")][:8]
        assert pictures == ["a100", "a80 b20", "a60 b40", "a40 b60", "a20 b80", "b100", "b100", "b100"]
        assert DropReason.SUPERSEDED in stream.drops


async def test_a_change_in_mid_blend_starts_from_the_current_mix(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(Mixes())
    async with running() as service, RawStream(service.address) as stream:
        settings = settings_pb2.Settings(prompt="a", blend_frames=4)
        await stream.start(settings=settings, drop_policy=pb.DROP_POLICY_LOSSLESS)
        changes: dict[int, dict[str, Any]] = {
            1: {"prompt": "b"},
            3: {"prompts": mixed(c=3, d=1)},
            4: {"strength": 0.9},
            9: {"prompt": "e", "blend_frames": 1},
        }
        for number in range(10):
            if number in changes:
                await stream.control(number, **changes[number])
            await stream.frame(number)
            await stream.read_answers(1)
        assert [a.frame.image.decode() for a in stream.answers] == [
            "a100",
            "a75 b25",
            "a50 b50",
            "a38 b38 c19 d6",
            "a25 b25 c38 d12",
            "a12 b12 c56 d19",
            "c75 d25",
            "c75 d25",
            "c75 d25",
            "e100",
        ]


async def test_every_setting_is_echoed_and_kept_until_it_is_changed(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(Mixes())
    async with running() as service, RawStream(service.address) as stream:
        asked = settings_pb2.Settings(
            prompts=mixed(a=1, b=3),
            guidance=settings_pb2.GUIDANCE_SELF,
            guidance_scale=1.4,
            delta=0.5,
            negative_prompt="blur",
            blend_frames=7,
        )
        opened = await stream.start(settings=asked)
        assert opened.settings.prompt == ""
        assert list(opened.settings.prompts) == list(asked.prompts)
        assert opened.settings.guidance == settings_pb2.GUIDANCE_SELF
        assert opened.settings.guidance_scale == pytest.approx(1.4)
        await stream.control(1, guidance=settings_pb2.GUIDANCE_FULL)
        await stream.control(2, prompt="c")
        first, second = [await stream.read(), await stream.read()]
        assert first is not None
        assert second is not None
        expected = opened.settings
        expected.guidance = settings_pb2.GUIDANCE_FULL
        assert first.control_applied.settings == expected
        expected.prompt = "c"
        del expected.prompts[:]
        assert second.control_applied.settings == expected
        shown = await stream.sessions.GetSession(
            session_service_pb2.GetSessionRequest(session_id=opened.session_id)
        )
        assert (shown.session.settings.prompt, shown.session.settings.negative_prompt) == ("", "")
        assert shown.session.settings.guidance == settings_pb2.GUIDANCE_FULL


RANGE = errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE
BAD_SETTINGS: list[tuple[dict[str, Any], int]] = [
    ({"guidance_scale": 0.5}, RANGE),
    ({"guidance_scale": math.nan}, RANGE),
    ({"delta": -1.0}, RANGE),
    ({"guidance": 9}, RANGE),
    ({"blend_frames": 10_001}, RANGE),
    ({"prompts": mixed(a=0)}, RANGE),
    ({"prompts": mixed(a=math.nan)}, RANGE),
    ({"prompts": mixed(**{f"p{n}": 1 for n in range(9)})}, RANGE),
    ({"prompt": "a", "prompts": mixed(b=1)}, RANGE),
    ({"prompts": [settings_pb2.WeightedPrompt(prompt=" ", weight=1)]}, errors_pb.ERROR_REASON_PROMPT_EMPTY),
    ({"prompts": mixed(**{"x" * 3000: 1})}, errors_pb.ERROR_REASON_PROMPT_TOO_LONG),
    ({"negative_prompt": "x" * 3000}, errors_pb.ERROR_REASON_PROMPT_TOO_LONG),
]


async def test_what_has_no_meaning_is_refused_and_changes_nothing(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(Mixes())
    async with running() as service, RawStream(service.address) as stream:
        opened = await stream.start("kept", drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number, (settings, reason) in enumerate(BAD_SETTINGS):
            await stream.control(number, **settings)
            response = await stream.read()
            assert response is not None
            assert response.control_applied.rejected_reason == reason, settings
            assert response.control_applied.settings == opened.settings
        await stream.frame(0)
        (answer,) = await stream.read_answers(1)
        assert answer.frame.image == b"kept100"


@pytest.mark.parametrize(
    "filter",
    [
        pb.SimilarityFilter(threshold=1.5),
        pb.SimilarityFilter(threshold=math.nan),
        pb.SimilarityFilter(max_skip_frames=0),
    ],
)
async def test_a_filter_without_a_meaning_is_refused(filter: pb.SimilarityFilter) -> None:
    async with running() as service, RawStream(service.address) as stream:
        request = pb.Open(settings=settings_pb2.Settings(prompt="a"), similarity_filter=filter)
        await stream.write(pb.TranslateRequest(open=request))
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.SETTING_OUT_OF_RANGE)
        assert end.metadata["field"].startswith("similarity_filter.")


async def send(stream: RawStream, images: Sequence[bytes], first: int = 0) -> list[pb.TranslateResponse]:
    for number, image in enumerate(images, start=first):
        await stream.frame(number, image, format=pb.IMAGE_FORMAT_RGB)
    return await stream.read_answers(len(images))


def shown(answers: Sequence[pb.TranslateResponse]) -> list[str]:
    """A letter per answer: a picture, or a frame that was left out as unchanged."""
    reasons = {errors_pb.DROP_REASON_UNCHANGED: "-"}
    return [reasons[a.dropped.reason] if a.HasField("dropped") else "P" for a in answers]


FILTERED: dict[str, Any] = {
    "drop_policy": pb.DROP_POLICY_LOSSLESS,
    "answer_format": pb.IMAGE_FORMAT_RGB,
    "similarity_filter": pb.SimilarityFilter(max_skip_frames=3),
}


async def test_still_frames_are_answered_unchanged_and_get_no_ordinal(image_checkpoint: str) -> None:
    async with (
        running(model={"checkpoint": image_checkpoint}) as service,
        RawStream(service.address) as stream,
    ):
        await stream.start(**FILTERED)
        answers = await send(stream, [STILL] * 6)
        answers += await send(stream, [OTHER, STILL], first=6)
        assert shown(answers) == ["P", "-", "-", "-", "P", "-", "P", "P"]
        assert [a.frame.image for a in answers if a.HasField("frame")] == [STILL, STILL, OTHER, STILL]
        assert stream.indices == list(range(8))
        (record,) = service.sessions
        assert record.session.state.next_ordinal == 4
        assert not record.session.book.owes


async def test_a_change_of_settings_is_seen_at_once_before_a_still_camera(image_checkpoint: str) -> None:
    async with (
        running(model={"checkpoint": image_checkpoint}) as service,
        RawStream(service.address) as stream,
    ):
        await stream.start(**FILTERED)
        answers = await send(stream, [STILL] * 2)
        await stream.control(1, prompt="b", blend_frames=3)
        await asyncio.wait_for(stream.read(), 10)
        answers += await send(stream, [STILL] * 5, first=2)
        assert shown(answers) == ["P", "-", "P", "P", "P", "-", "-"]


async def test_without_a_filter_still_frames_are_translated(image_checkpoint: str) -> None:
    async with (
        running(model={"checkpoint": image_checkpoint}) as service,
        RawStream(service.address) as stream,
    ):
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS, answer_format=pb.IMAGE_FORMAT_RGB)
        assert shown(await send(stream, [STILL] * 3)) == ["P"] * 3
