"""Controls: in order with the frames, echoed, refused without harm."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import simplejpeg
from rearview.engine.networks.model import Model
from rearview.errors import Reason
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.planted import Stamps
from support.raw_stream import OPERATORS, RawStream, eventually, running

pytestmark = pytest.mark.integration

PIPELINE = tuple((operator,) for operator in OPERATORS)
SPANS = pytest.mark.parametrize("spans", [(OPERATORS,), PIPELINE], ids=["fused", "pipeline"])


@SPANS
@pytest.mark.parametrize("policy", [pb.DROP_POLICY_LOSSLESS, pb.DROP_POLICY_LATEST], ids=pb.DropPolicy.Name)
async def test_each_frame_is_translated_under_the_settings_that_it_was_sent_after(
    plant_model: Callable[[Model], None],
    spans: tuple[tuple[str, ...], ...],
    policy: pb.DropPolicy.ValueType,
) -> None:
    """Prompt and steps change at random between frames, steps live between 1 and 2."""
    plant_model(Stamps())
    chance = random.Random(len(spans))
    async with running(spans=spans) as service, RawStream(service.address) as stream:
        await stream.start("p-1", drop_policy=policy)
        steps, prompt, expected, controls = 2, "p-1", [], []

        async def send() -> None:
            nonlocal steps, prompt
            for number in range(80):
                if chance.random() < 0.4:
                    steps, prompt = chance.choice((1, 2)), f"p{number}"
                    controls.append((number, number, steps))
                    await stream.control(number, steps=steps, prompt=prompt)
                await eventually(lambda n=number: stream.frame_credit > n)  # type: ignore[misc]
                await stream.frame(number, b"%d." % number)
                expected.append(b"%d." % number + b"d" * steps + b"|" + prompt.encode())
            await stream.half_close()

        sender = asyncio.create_task(send())
        end = await stream.read_to_end()
        await sender
        assert end.code is grpc.StatusCode.OK
        assert stream.indices == list(range(80))
        for number, answer in enumerate(stream.answers):
            assert answer.HasField("dropped") or answer.frame.image == expected[number]
        assert policy == pb.DROP_POLICY_LATEST or not stream.drops
        assert sum(a.HasField("frame") for a in stream.answers) > 10
        echoed = [r.control_applied for r in stream.received if r.HasField("control_applied")]
        assert [(c.control_id, c.received_frames, c.settings.steps) for c in echoed] == controls


async def test_frames_in_flight_finish_under_the_prompt_that_they_were_sent_under(
    plant_model: Callable[[Model], None],
) -> None:
    plant_model(Stamps())
    async with running() as service, RawStream(service.address) as stream:
        await stream.start("old", drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(6):
            await stream.frame(number, b"x")
        await stream.control(1, prompt="new")
        await stream.frame(6, b"x")
        answers = await stream.read_answers(7)
        assert [a.frame.image for a in answers] == [b"xdd|old"] * 6 + [b"xdd|new"]


BAD_CONTROLS = [
    ({"strength": math.nan}, errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE),
    ({"strength": math.inf}, errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE),
    ({"strength": 0.0}, errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE),
    ({"steps": 0}, errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE),
    ({"steps": 3}, errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE),
    ({"noise_rule": 9}, errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE),
    ({"prompt": ""}, errors_pb.ERROR_REASON_PROMPT_EMPTY),
    ({"prompt": " \n"}, errors_pb.ERROR_REASON_PROMPT_EMPTY),
    ({"prompt": "x" * 100_000}, errors_pb.ERROR_REASON_PROMPT_TOO_LONG),
    ({"prompt": "fine", "strength": 2.0}, errors_pb.ERROR_REASON_SETTING_OUT_OF_RANGE),
]


async def test_a_bad_control_is_refused_and_changes_nothing(plant_model: Callable[[Model], None]) -> None:
    plant_model(Stamps())
    async with running() as service, RawStream(service.address) as stream:
        opened = await stream.start("kept", drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number, (settings, reason) in enumerate(BAD_CONTROLS):
            await stream.control(number, **settings)
            response = await stream.read()
            assert response is not None
            applied = response.control_applied
            assert (applied.control_id, applied.rejected_reason) == (number, reason), settings
            assert applied.settings == opened.settings
        await stream.frame(1, b"x")
        (answer,) = await stream.read_answers(1)
        assert answer.frame.image == b"xdd|kept"


async def test_a_control_keeps_the_fields_that_it_does_not_name() -> None:
    async with running() as service, RawStream(service.address) as stream:
        settings = settings_pb2.Settings(
            prompt="a", strength=0.25, steps=1, seed=7, noise_rule=settings_pb2.NOISE_RULE_FRESH
        )
        opened = await stream.start(settings=settings)
        assert opened.settings.prompt == "a"
        await stream.control(1, seed=8)
        response = await stream.read()
        assert response is not None
        expected = settings_pb2.Settings()
        expected.CopyFrom(opened.settings)
        expected.seed = 8
        assert response.control_applied.settings == expected
        assert response.control_applied.rejected_reason == errors_pb.ERROR_REASON_UNSPECIFIED
        assert opened.settings.strength == pytest.approx(0.25)


@SPANS
async def test_pictures_change_with_the_settings_and_are_the_same_in_every_topology(
    tiny_checkpoint: Path, images: dict[str, bytes], spans: tuple[tuple[str, ...], ...]
) -> None:
    """Real networks: the frame after a control has the picture of a session opened with its settings."""
    plain = {"checkpoint": str(tiny_checkpoint), "dtype": "float32"}
    changes = [{}, {"prompt": "b", "strength": 0.9}, {"steps": 1}, {"steps": 2, "seed": 5}]
    async with running(spans=spans, model=plain) as service:
        async with RawStream(service.address) as stream:
            await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS, answer_format=pb.IMAGE_FORMAT_RGB)
            for number, change in enumerate(changes):
                if change:
                    await stream.control(number, **change)
                await stream.frame(number, images["good"], pb.IMAGE_FORMAT_JPEG)
            answers = await stream.read_answers(len(changes))
            pictures = [answer.frame.image for answer in answers]
            assert len(set(pictures)) == len(changes)
        settings = settings_pb2.Settings(prompt="b", strength=0.9, steps=2, seed=5)
        async with RawStream(service.address) as stream:
            await stream.start(settings=settings, answer_format=pb.IMAGE_FORMAT_RGB)
            await stream.frame(0, images["good"], pb.IMAGE_FORMAT_JPEG)
            (answer,) = await stream.read_answers(1)
            assert answer.frame.image == pictures[-1]


CUTS = {
    "fused": (OPERATORS,),
    "by operator": PIPELINE,
    "edges apart": ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],)),
    "in the middle": (OPERATORS[:2], OPERATORS[2:]),
}


async def test_every_cut_gives_the_same_pictures(tiny_checkpoint: Path, images: dict[str, bytes]) -> None:
    plain = {"checkpoint": str(tiny_checkpoint), "dtype": "float32"}
    pixels = simplejpeg.decode_jpeg(images["good"])
    frames = [bytes((pixels + 5 * number).tobytes()) for number in range(6)]
    pictures: dict[str, list[bytes]] = {}
    for name, spans in CUTS.items():
        async with running(spans=spans, model=plain) as service, RawStream(service.address) as stream:
            await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS, answer_format=pb.IMAGE_FORMAT_RGB)
            for number, frame in enumerate(frames):
                if number == 2:
                    await stream.control(1, steps=1)
                if number == 4:
                    await stream.control(2, steps=2)
                await stream.frame(number, frame, pb.IMAGE_FORMAT_RGB)
            answers = await stream.read_answers(len(frames))
            pictures[name] = [answer.frame.image for answer in answers]
            used = [[span.span for span in answer.frame.timings.spans] for answer in answers]
            assert used == [[f"span-{i}" for i in range(len(spans))]] * len(frames)
            await stream.half_close()
            assert (await stream.read_to_end()).reason is not Reason.INTERNAL
    assert all(len(picture) == 64 * 64 * 3 for picture in pictures["fused"])
    for name, others in pictures.items():
        for mine, theirs in zip(pictures["fused"], others, strict=True):
            # Batches differ between cuts, so rounding to a byte may differ by one.
            assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) <= 1, name
