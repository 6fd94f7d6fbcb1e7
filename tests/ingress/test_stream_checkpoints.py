"""Checkpoints of published layouts through the whole service: what a session gets, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rearview.cli.model_choice import model_config
from rearview.contract.settings import Settings
from rearview.engine.reference.frame import translate_frame
from rearview.engine.weights.checkpoint import load_denoiser, load_vae
from rearview.errors import Reason
from rearview.schema import from_message
from rearview.schema.tables import SETTINGS
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import RawStream, quickly_stopped
from support.service import in_process_service
from support.tiny import SIZE, random_frames
from support.tiny_turbo import write_tiny_lcm, write_tiny_turbo

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
LOSSLESS = {"drop_policy": pb.DROP_POLICY_LOSSLESS, "answer_format": pb.IMAGE_FORMAT_RGB}


@asynccontextmanager
async def served(checkpoint: Path, steps: int | None = None) -> AsyncIterator[tuple[str, RawStream]]:
    config = model_config(str(checkpoint), size=(SIZE, SIZE), steps=steps, topology="pipeline")
    model = config.model.model_copy(update={"dtype": "float32"})
    spans = tuple(span.model_copy(update={"num_threads": 1}) for span in config.spans)
    with quickly_stopped():
        async with (
            in_process_service(config.model_copy(update={"model": model, "spans": spans})) as service,
            RawStream(service.address) as stream,
        ):
            yield service.address, stream


@pytest.fixture(autouse=True)
def own_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REARVIEW_MODELS", str(tmp_path / "models"))


async def picture(stream: RawStream, index: int) -> torch.Tensor:
    """Of the same frame each time."""
    await stream.frame(index, random_frames(1)[0].numpy().tobytes(), pb.IMAGE_FORMAT_RGB)
    (answer,) = await stream.read_answers(1)
    image = np.frombuffer(answer.frame.image, np.uint8).reshape(SIZE, SIZE, 3)
    return torch.from_numpy(image.astype(np.int64))


async def applied(stream: RawStream, number: int, **settings: Any) -> pb.ControlApplied:
    await stream.control(number, **settings)
    while (response := await stream.read()) is not None:
        if response.HasField("control_applied"):
            return response.control_applied
    raise AssertionError(await stream.end())


async def test_sd_turbo_runs_in_one_step_unless_more_are_asked(tmp_path: Path) -> None:
    """And its pictures are those of the plain path, which are diffusers'."""
    folder = write_tiny_turbo(tmp_path / "turbo")
    parts = load_vae(folder, CPU, torch.float32), load_denoiser(folder, CPU, torch.float32)

    def expected(settings: settings_pb2.Settings, ordinal: int) -> torch.Tensor:
        ours = from_message(SETTINGS, Settings, settings, refuses=True)
        return translate_frame(*parts, random_frames(1)[0], ours, ordinal, torch.float32).long()

    async with served(folder, steps=3) as (_, stream):
        opened = await stream.start(**LOSSLESS, max_steps=3)
        assert (opened.model, opened.settings.steps, opened.settings.strength) == ("turbo", 1, 0.5)
        first = await picture(stream, 0)
        assert (first - expected(opened.settings, 0)).abs().max() <= 1
        change = await applied(stream, 1, timestep_indices=[12, 25, 37])
        assert (change.settings.steps, list(change.settings.timestep_indices)) == (3, [12, 25, 37])
        second = await picture(stream, 1)
        assert (second - expected(change.settings, 1)).abs().max() <= 1
        assert not torch.equal(first, second)
        refused = await applied(stream, 2, timestep_indices=[37, 12])
        assert Reason(refused.rejected_reason) is Reason.SETTING_OUT_OF_RANGE
        refused = await applied(stream, 3, timestep_indices=[1, 2, 3, 4])
        assert Reason(refused.rejected_reason) is Reason.SETTING_OUT_OF_RANGE, "more than max_steps"
        change = await applied(stream, 4, strength=0.3)
        assert not change.settings.timestep_indices


async def test_an_embedded_scale_is_asked_for_by_guidance_scale_alone(tmp_path: Path) -> None:
    async with served(write_tiny_lcm(tmp_path / "lcm")) as (address, stream):
        opened = await stream.start(**LOSSLESS)
        assert (opened.settings.guidance_scale, opened.settings.guidance) == (8.0, settings_pb2.GUIDANCE_NONE)
        before = await picture(stream, 0)
        refused = await applied(stream, 1, guidance=settings_pb2.GUIDANCE_SELF)
        assert Reason(refused.rejected_reason) is Reason.SETTING_OUT_OF_RANGE
        await applied(stream, 2, guidance_scale=2.0)
        assert not torch.equal(before, await picture(stream, 1)), "the scale changes nothing"
        async with RawStream(address) as other:
            asked = settings_pb2.Settings(prompt="a", guidance=settings_pb2.GUIDANCE_FULL, guidance_scale=3.0)
            await other.write(pb.TranslateRequest(open=pb.Open(settings=asked)))
            assert await other.read() is None
            end = await other.end()
        assert end.reason is Reason.SETTING_OUT_OF_RANGE
        assert end.metadata == {"field": "guidance"}


async def test_a_bank_takes_layers_of_different_heads_and_linear_projections(tmp_path: Path) -> None:
    async with served(write_tiny_turbo(tmp_path / "turbo")) as (address, stream):
        await stream.start(**LOSSLESS, method=pb.METHOD_STREAMV2V)
        banked = [await picture(stream, index) for index in range(3)]
        async with RawStream(address) as plain:
            await plain.start(**LOSSLESS, method=pb.METHOD_PER_FRAME)
            alone = [await picture(plain, index) for index in range(3)]
    assert (banked[0] - alone[0]).abs().max() <= 1, "an empty bank changed the first picture"
    assert torch.equal(alone[0], alone[2])
    assert all(one.float().std() > 1.0 for one in banked)
