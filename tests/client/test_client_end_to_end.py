"""The client against the whole service in this process, over a tiny checkpoint of random weights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Unpack

import numpy as np
import pytest
import torch
from rearview.client import (
    Answer,
    BankOptions,
    BankPolicy,
    Client,
    ControlApplied,
    Dropped,
    DropPolicy,
    Guidance,
    Image,
    ImageFormat,
    Method,
    OpenOptions,
    SettingsChange,
    SimilarityOptions,
    Translated,
    WeightedPrompt,
)
from rearview.client.exchange import Item
from rearview.config import load_config
from rearview.errors import DropReason, InvalidRequest, Reason
from support.raw_stream import quickly_stopped
from support.service import in_process_service
from support.tiny import SIZE, random_frames, write_tiny_checkpoint

pytestmark = pytest.mark.integration

EXACT: OpenOptions = {
    "prompt": "a",
    "strength": 0.9,
    "drop_policy": DropPolicy.LOSSLESS,
    "answer_format": ImageFormat.RGB,
    "send_quality": 0,
}
STRONG: OpenOptions = {"guidance": Guidance.FULL, "guidance_scale": 20.0, "negative_prompt": "zebra"}
"""Random weights hardly look at the prompt: what it does must be amplified to be seen."""
FRAMES: list[Image] = [frame.numpy() for frame in random_frames(4)]
STILL = FRAMES[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
async def client(checkpoint: Path) -> AsyncIterator[Client]:
    config = load_config(
        {
            "model": {"checkpoint": str(checkpoint), "dtype": "float64", "width": SIZE, "height": SIZE},
            "bank": {},
            "ingress": {"port": 0},
            "link": {"secret": "s"},
        }
    )
    with quickly_stopped():
        async with in_process_service(config) as service, Client(service.address) as running:
            yield running


async def translate(client: Client, items: Iterable[Item], **options: Unpack[OpenOptions]) -> list[Answer]:
    wanted: OpenOptions = {**EXACT, **options}
    return [answer async for answer in client.translate_frames(items, **wanted)]


def pictures(answers: list[Answer]) -> list[Image]:
    return [answer.image for answer in answers if isinstance(answer, Translated)]


def gap(left: Image, right: Image) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(left.astype(int) - right).mean())


async def test_guidance_changes_the_picture_by_its_kind_and_only_above_scale_one(client: Client) -> None:
    away: OpenOptions = {"guidance_scale": 8.0, "negative_prompt": "b"}
    (plain,) = pictures(await translate(client, [STILL]))
    found = {
        kind: pictures(await translate(client, [STILL], guidance=kind, **away))[0]  # type: ignore[misc]
        for kind in Guidance
    }
    (weightless,) = pictures(await translate(client, [STILL], guidance=Guidance.FULL, negative_prompt="b"))
    assert np.array_equal(found.pop(Guidance.NONE), plain)
    assert np.array_equal(weightless, plain), "at scale 1 no guidance acts"
    others = [plain, *found.values()]
    gaps = [gap(one, other) for i, one in enumerate(others) for other in others[:i]]
    assert min(gaps) > 0.5


async def test_a_blend_goes_from_prompt_to_prompt_over_its_frames(client: Client) -> None:
    (end,) = pictures(await translate(client, [STILL], **STRONG | {"prompt": "b"}))
    items = [STILL, SettingsChange(prompt="b", blend_frames=5), *[STILL] * 6]
    answers = await translate(client, items, **STRONG)
    start, *blended = pictures(answers)
    from_start = [gap(start, picture) for picture in blended]
    assert from_start[:5] == sorted(set(from_start[:5])), "every frame is further on the way"
    assert from_start[0] < from_start[4] / 2, "the first is no jump"
    assert np.array_equal(blended[4], end)
    assert np.array_equal(blended[5], end)
    assert not np.array_equal(blended[3], end)
    (applied,) = [answer for answer in answers if isinstance(answer, ControlApplied)]
    assert (applied.settings.prompt, applied.settings.blend_frames) == ("b", 5)
    assert applied.settings.guidance is Guidance.FULL


async def test_a_mix_lies_between_its_prompts_and_a_repeated_one_counts_twice(client: Client) -> None:
    a, b, mixed, same = [
        pictures(await translate(client, [STILL], **STRONG | {"prompt": None} | prompts))[0]  # type: ignore[arg-type]
        for prompts in (
            {"prompt": "a"},
            {"prompt": "b"},
            {"prompts": [WeightedPrompt("a", 2.0), WeightedPrompt("b", 1.0)]},
            {"prompts": [WeightedPrompt(name, 0.5) for name in ("b", "a", "a")]},
        )
    ]
    assert 0 < gap(a, mixed) < gap(b, mixed) < gap(a, b)
    assert np.array_equal(mixed, same)


async def test_a_repeated_frame_is_unchanged_until_the_settings_or_the_picture_change(client: Client) -> None:
    items = [STILL, STILL, STILL, SettingsChange(seed=1), STILL, STILL, FRAMES[1], FRAMES[1]]
    filtered = await translate(client, items, similarity_filter=SimilarityOptions(threshold=0.98))
    frames = [answer for answer in filtered if isinstance(answer, Translated | Dropped)]
    dropped = [answer.frame_index for answer in frames if isinstance(answer, Dropped)]
    assert [answer.frame_index for answer in frames] == list(range(7))
    assert dropped == [1, 2, 4, 6]
    assert {answer.reason for answer in frames if isinstance(answer, Dropped)} == {DropReason.UNCHANGED}
    assert len(pictures(await translate(client, items))) == 7, "without a filter every frame is translated"


async def test_a_filter_leaves_out_so_many_frames_and_no_more(client: Client) -> None:
    limited = SimilarityOptions(max_skip_frames=2)
    answers = await translate(client, [STILL] * 7, similarity_filter=limited)
    assert [type(answer) for answer in answers] == [Translated, *[Dropped, Dropped, Translated] * 2]


async def test_opened_says_which_method_and_settings_are_in_use(client: Client) -> None:
    async with client.open(**EXACT) as session:
        assert session.opened.method is Method.PER_FRAME
        settings = session.opened.settings
        assert (settings.prompt, settings.prompts, settings.adapters) == ("a", (), "")
        assert (settings.guidance, settings.guidance_scale, settings.delta) == (Guidance.NONE, 1.0, 1.0)
        assert (settings.strength, settings.blend_frames, settings.negative_prompt) == (0.9, 0, "")
    bank = BankOptions(policy=BankPolicy.QUEUE, interval=1)
    async with client.open(**EXACT, method=Method.STREAMV2V, feature_bank=bank) as session:
        assert session.opened.method is Method.STREAMV2V


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"delta": float("nan")}, "delta"),
        ({"blend_frames": 10_001}, "blend_frames"),
        ({"prompts": [WeightedPrompt("b", 1.0)]}, "prompts"),
        ({"adapters": "ink"}, "adapters"),
        ({"similarity_filter": SimilarityOptions(threshold=1.5)}, "similarity_filter.threshold"),
    ],
)
async def test_what_cannot_be_served_is_refused_at_opening_and_named(
    client: Client, options: OpenOptions, field: str
) -> None:
    wanted: OpenOptions = {**EXACT, **options}
    with pytest.raises(InvalidRequest) as caught:
        async with client.open(**wanted):
            pass
    assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE
    assert caught.value.metadata["field"] == field
