"""An ingress is killed before any message that goes in or out of it: at the other one nothing is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from rearview.client import (
    Client,
    ControlApplied,
    Dropped,
    DropPolicy,
    ImageFormat,
    Reconnect,
    SettingsChange,
    Translated,
)
from rearview.client.aio import Frame
from rearview.errors import DropReason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import crash, cut_at, several
from support.raw_stream import OPERATORS, eventually, null_config
from support.service import InProcessService

from clients.python_raw.resume import translate

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS,), ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],)))
FRAMES = 14
EMPTY = (4, 5)
QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.02)


def items() -> list[Frame | SettingsChange]:
    """Frames whose numbers have gaps, two of them empty; and controls between them."""
    items: list[Frame | SettingsChange] = []
    for number in range(FRAMES):
        if number in (3, 6):
            items.append(SettingsChange(seed=number))
        image = b"" if number in EMPTY else b"%d" % number
        items.append(Frame(image, index=3 * number + 1, format=ImageFormat.OPAQUE))
    return items


async def answers_over(
    addresses: Sequence[str], policy: DropPolicy
) -> tuple[list[Translated | Dropped], list[ControlApplied]]:
    frames: list[Translated | Dropped] = []
    controls: list[ControlApplied] = []
    async with Client(addresses, reconnect=QUICK) as client:
        async for answer in client.translate_frames(items(), drop_policy=policy, prompt="a"):
            if isinstance(answer, Translated | Dropped):
                frames.append(answer)
            elif isinstance(answer, ControlApplied):
                controls.append(answer)
    return frames, controls


def assert_whole(answers: list[Translated | Dropped], policy: DropPolicy) -> None:
    assert [answer.frame_index for answer in answers] == [3 * number + 1 for number in range(FRAMES)]
    for number, answer in enumerate(answers):
        if isinstance(answer, Translated):
            assert answer.data == b"%d" % number
        elif number in EMPTY:
            assert answer.reason is DropReason.IMAGE_EMPTY
        else:
            assert policy is DropPolicy.LATEST
            assert answer.reason is DropReason.SUPERSEDED


def described(service: InProcessService) -> list[Mapping[str, Any]]:
    return [stage.describe() for stage in service.stages]


@pytest.mark.parametrize("spans", SPANS, ids=["fused", "pipeline"])
@pytest.mark.parametrize("policy", [DropPolicy.LOSSLESS, DropPolicy.LATEST])
async def test_wherever_an_ingress_is_cut_every_frame_has_one_outcome_in_order(
    spans: Sequence[Sequence[str]], policy: DropPolicy
) -> None:
    async with several(1, null_config(spans=spans)) as service:
        other, cuts = service.addresses[0], 0
        for number in range(0, 400, 5):
            doomed = await service.add()
            with cut_at(doomed, number) as cut:
                answers, controls = await answers_over([doomed.address, other], policy)
            assert_whole(answers, policy)
            assert [(each.settings.seed, each.rejected_reason) for each in controls] == [(3, None), (6, None)]
            await eventually(lambda: all(s["sessions"] == s["orphans"] for s in described(service)))
            if not cut.is_dead:
                break
            cuts += 1
        assert cuts >= 8
        # Sessions that were cut before their client had heard of them: nobody can adopt these.
        assert len(described(service)[0]["orphans"]) == len(await service.directory.list(None)) <= 1


async def test_a_raw_client_goes_on_when_its_ingress_is_gone() -> None:
    async with several(2) as service:
        start = pb.Open(settings=settings_pb2.Settings(prompt="a"), drop_policy=pb.DROP_POLICY_LOSSLESS)
        images = [b"%d" % number for number in range(12)]
        frames = [
            pb.Frame(frame_index=number, format=pb.IMAGE_FORMAT_OPAQUE, image=image)
            for number, image in enumerate(images)
        ]
        answers = []
        async for answer in translate(service.addresses, start, frames):
            answers.append(answer)
            if len(answers) == 4:
                await crash(service.servers[0])
        assert [answer.frame_index for answer in answers] == list(range(12))
        assert [answer.image for answer in answers] == images
        await eventually(lambda: service.stages[0].num_sessions == 0)
