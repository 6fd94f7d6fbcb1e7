"""Live2Diff through the client library, async and blocking, against the whole service in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
import torch
from rearview.client import (
    Answer,
    CacheOptions,
    Client,
    ControlApplied,
    DropPolicy,
    Image,
    ImageFormat,
    Method,
    OpenOptions,
    Rewarm,
    SettingsChange,
    Translated,
    sync,
)
from rearview.client.exchange import Item
from rearview.config import load_config
from support.raw_stream import quickly_stopped
from support.service import in_process_service
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_motion_files import write_motion_adapter

pytestmark = pytest.mark.integration

W = 3
FRAMES: list[Image] = [frame.numpy() for frame in random_frames(2 * W + 2)]
CHANGE = SettingsChange(prompt="b")
ITEMS: list[Item] = [*FRAMES[: W + 1], CHANGE, *FRAMES[W + 1 :]]
EXACT: OpenOptions = {
    "prompt": "a",
    "strength": 0.9,
    "method": Method.LIVE2DIFF,
    "drop_policy": DropPolicy.LOSSLESS,
    "answer_format": ImageFormat.RGB,
    "send_quality": 0,
}


@pytest.fixture
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Of a service over a tiny checkpoint that has motion modules of its own."""
    torch.set_num_threads(1)
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
    write_motion_adapter(folder / "motion_adapter")
    config = load_config(
        {
            "model": {"checkpoint": str(folder), "dtype": "float64", "width": SIZE, "height": SIZE},
            "cache": {"sink_frames": W, "ring_frames": 2},
            "ingress": {"port": 0},
            "link": {"secret": "s"},
        }
    )
    with quickly_stopped():
        async with in_process_service(config) as service:
            yield service.address


def pictures(answers: Sequence[Answer]) -> list[Image]:
    return [answer.image for answer in answers if isinstance(answer, Translated)]


def same(left: Sequence[Image], right: Sequence[Image]) -> bool:
    return len(left) == len(right) and all(map(np.array_equal, left, right))


async def test_a_session_warms_up_and_swaps_its_cache_after_a_new_prompt(address: str) -> None:
    async with Client(address) as client:

        async def translated(items: Sequence[Item], kind: Rewarm) -> list[Answer]:
            cache = CacheOptions(prompt_change=kind)
            return [answer async for answer in client.translate_frames(items, **EXACT, temporal_cache=cache)]

        answers = await translated(ITEMS, Rewarm.SHADOW)
        shadow = pictures(answers)
        keep = pictures(await translated(ITEMS, Rewarm.KEEP))
        assert [a.frame_index for a in answers if isinstance(a, Translated)] == list(range(len(FRAMES)))
        assert [a.settings.prompt for a in answers if isinstance(a, ControlApplied)] == ["b"]
        swapped = W + 1 + W
        assert same(shadow[:swapped], keep[:swapped]), "until the swap the old cache is read"
        assert not same(shadow[swapped:], keep[swapped:])
        short = pictures(await translated(FRAMES[:1], Rewarm.SHADOW))
        assert len(short) == 1, "a stream that ends before it is warm gets its pictures"
        async with client.open(**EXACT) as session:
            assert session.opened.method is Method.LIVE2DIFF


async def test_the_blocking_client_gets_the_same_pictures(address: str) -> None:
    async with Client(address) as client:
        expected = [answer async for answer in client.translate_frames(ITEMS, **EXACT)]

    def blocking() -> list[Answer]:
        with sync.Client(address) as client, client.open(**EXACT) as session:
            assert session.opened.method is Method.LIVE2DIFF
            return list(client.translate_frames(ITEMS, **EXACT))

    found = await asyncio.to_thread(blocking)
    assert len(pictures(found)) == len(FRAMES)
    assert same(pictures(found), pictures(expected))
