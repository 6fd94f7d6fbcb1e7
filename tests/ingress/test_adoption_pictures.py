"""Pictures of sessions with a past are those of a session that was never cut, bit by bit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import pytest
import torch
from rearview.client import (
    BankOptions,
    CacheOptions,
    Client,
    ControlApplied,
    Dropped,
    DropPolicy,
    ImageFormat,
    Method,
    Reconnect,
    SettingsChange,
    SimilarityOptions,
    Translated,
    WeightedControl,
)
from rearview.client.aio import Frame
from rearview.client.options import OpenOptions
from rearview.config import load_config
from rearview.errors import DropReason
from rearview.ingress.coder import Coder, Decoded
from rearview.ingress.intake import Waiting
from support.ingresses import crash, cut_at, several
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_control import write_tiny_control
from support.tiny_motion_files import original_motion, write_motion_file
from support.tiny_reference import pixels, png, reference_file

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.02)
SPLIT = [
    {"name": "first", "operators": ["encode", "denoise-0"]},
    {"name": "second", "operators": ["denoise-1", "decode"]},
]
BANK: OpenOptions = {
    "method": Method.STREAMV2V,
    "feature_bank": BankOptions(interval=2),
    "similarity_filter": SimilarityOptions(threshold=0.5, max_skip_frames=2),
}
LIVE2DIFF: OpenOptions = {
    "method": Method.LIVE2DIFF,
    "feature_bank": BankOptions(interval=2),
    "temporal_cache": CacheOptions(scene_detection=True),
}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a config: a tiny model with motion modules, a control and a reference adapter, in two spans."""
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("tiny")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    control = write_tiny_control(folder / "pose", checkpoint)
    reference = reference_file(folder, checkpoint)
    return {
        "model": {
            "checkpoint": str(checkpoint),
            "controls": {"pose": {"path": str(control), "picture": "sent"}},
            "reference": {"path": reference.path, "image_encoder": reference.image_encoder},
            "motion": str(write_motion_file(folder / "motion.safetensors", original_motion())),
            "dtype": "float64",
            "width": SIZE,
            "height": SIZE,
        },
        "topology": "pipeline",
        "spans": SPLIT,
        "cache": {"sink_frames": 3, "ring_frames": 2},
        "bank": {"interval": 2, "fusion_threshold": -1.0},
        "ingress": {"port": 0},
        "link": {"secret": "s"},
    }


def items() -> list[Frame | SettingsChange]:
    """A video that cuts to other scenes and stands still in between, under changing settings. Some scenes are
    sent with a pose.
    """
    scenes = [frame.numpy().tobytes() for frame in random_frames(6)]
    shown = (0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4, 5, 0, 0, 1)
    changes = {
        5: SettingsChange(prompt="b", blend_frames=4, reference=png(pixels(1))),
        10: SettingsChange(seed=7, reference_scale=0.6),
    }
    items: list[Frame | SettingsChange] = []
    for number, scene in enumerate(shown):
        if number in changes:
            items.append(changes[number])
        pose = {"pose": scenes[scene - 1]} if scene % 2 else {}
        items.append(Frame(scenes[scene], index=number, format=ImageFormat.RGB, controls=pose))
    return items


async def outcomes(
    addresses: Sequence[str],
    options: OpenOptions,
    then: Mapping[int, Callable[[], Awaitable[None]]] = MappingProxyType({}),
) -> list[bytes | DropReason]:
    """What became of each frame. `then`: what happens when so many controls have been answered."""
    found: dict[int, bytes | DropReason] = {}
    controls = 0
    async with Client(addresses, reconnect=QUICK) as client:
        answers = client.translate_frames(
            items(),
            prompt="a",
            drop_policy=DropPolicy.LOSSLESS,
            answer_format=ImageFormat.RGB,
            controls=(WeightedControl("pose"),),
            **options,
        )
        async for answer in answers:
            if isinstance(answer, Translated | Dropped):
                assert answer.frame_index == len(found)
                found[len(found)] = answer.reason if isinstance(answer, Dropped) else answer.data
            elif isinstance(answer, ControlApplied) and (controls := controls + 1) in then:
                await then[controls]()
    return list(found.values())


def differences(pieces: Sequence[bytes | DropReason], whole: Sequence[bytes | DropReason]) -> list[str]:
    """At which places they differ, and how: a picture is told by what has the same one in the whole."""

    def named(outcome: bytes | DropReason) -> str:
        if isinstance(outcome, DropReason):
            return outcome.name
        return f"picture {whole.index(outcome)}" if outcome in whole else "another picture"

    return [
        f"{place}: {named(one)} for {named(other)}"
        for place, (one, other) in enumerate(zip(pieces, whole, strict=True))
        if one != other
    ]


@pytest.mark.parametrize("options", [BANK, LIVE2DIFF], ids=["bank", "live2diff"])
async def test_a_session_with_a_past_goes_on_bit_by_bit(
    content: dict[str, Any], options: OpenOptions
) -> None:
    async with several(1, load_config(content)) as service:
        whole = await outcomes(service.addresses, options)
        assert len({each for each in whole if isinstance(each, bytes)}) > 5
        assert DropReason.UNCHANGED in whole or options is LIVE2DIFF
        for number in (4, 19, 33, 48, 61, 77):
            doomed = await service.add()
            with cut_at(doomed, number) as cut:
                pieces = await outcomes([doomed.address, service.addresses[0]], options)
            assert cut.is_dead
            assert differences(pieces, whole) == [], f"cut at message {number}"


@pytest.mark.parametrize("options", [BANK, LIVE2DIFF], ids=["bank", "live2diff"])
@pytest.mark.parametrize(("waits", "controls"), [(2, 1), (5, 2)], ids=["of a scene", "of a blend"])
async def test_settings_that_have_overtaken_frames_are_found_where_they_stood(
    content: dict[str, Any], options: OpenOptions, waits: int, controls: int
) -> None:
    """The ingress that dies has looked at no frame from `waits` on, and has applied so many controls."""
    async with several(1, load_config(content)) as service:
        whole = await outcomes(service.addresses, options)
        doomed, decode = await service.add(), Coder.decode
        is_there, died = asyncio.Event(), asyncio.Event()

        async def decode_until(coder: Coder, waiting: Waiting, *args: Any, **kwargs: Any) -> Decoded:
            if coder._executor is doomed._ingress._executor and waiting.frame.frame_index >= waits:
                is_there.set()
                await died.wait()
            return await decode(coder, waiting, *args, **kwargs)

        async def die() -> None:
            await is_there.wait()
            await crash(doomed)
            died.set()

        with mock.patch.object(Coder, "decode", decode_until):
            pieces = await outcomes([doomed.address, service.addresses[0]], options, {controls: die})
        assert died.is_set()
        assert differences(pieces, whole) == []
