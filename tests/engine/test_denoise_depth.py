"""How depth travels with a frame through the denoising steps, beside the anchor of its guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.frame import DEPTH, LATENT
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.rows import Row
from support.frames import in_flight, stacked
from support.tiny_chain import tiny_networks
from torch import Tensor

pytestmark = pytest.mark.unit

FRAMES = 3


class DepthUNet:
    """Predicts from the latent and adds the depth latent; notes what it was given."""

    has_depth = True

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self.depths: list[Tensor | None] = []

    def __call__(
        self, sample: Tensor, *rest: Any, depth: Tensor | None = None, **named: Any
    ) -> tuple[Tensor]:
        self.depths.append(depth)
        (output,) = self._unet(sample, *rest, **named)
        return (output if depth is None else output + depth,)


def denoiser() -> Denoiser:
    _, plain = tiny_networks()
    return Denoiser(DepthUNet(plain.unet), plain.schedule, plain.conditioning, torch.float32)


def row(
    settings: Settings, step: int, planes: Mapping[str, Tensor], *, cache: bool = True, window: bool = False
) -> Row:
    spec = SessionSpec("s", 64, 64, 4, settings, cache=CacheSettings() if cache else None)
    link = Operator(OperatorKind.DENOISE, step)
    frames = tuple(
        in_flight(spec, n, link, {name: plane + n if window else plane for name, plane in planes.items()})
        for n in range(FRAMES)
    )
    return Row(frames if window else frames[-1:], link, "g", 0.0, warms_up=window)


@torch.inference_mode()
def run(model: Denoiser, each: Row) -> list[Mapping[str, Tensor]]:
    return model([sample.planes for sample in each.samples()], [each], Views())[0]


def latents(count: int) -> dict[str, Tensor]:
    """A latent, and with `count` 2 also that of its depth."""
    both = torch.randn(count, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    return dict(zip((LATENT, DEPTH)[:count], both, strict=True))


@pytest.mark.parametrize("guidance", Guidance)
def test_depth_stays_the_same_through_all_steps_and_is_gone_after_the_last(guidance: Guidance) -> None:
    settings = Settings("a", 0.8, 3, guidance=guidance, guidance_scale=1.5, negative_prompt="b")
    model, planes = denoiser(), latents(2)
    anchored = guidance in (Guidance.SELF, Guidance.INITIALIZE)
    depth = planes[DEPTH]
    for step in range(3):
        (planes,) = run(model, row(settings, step, planes))
        assert stacked(planes).shape == ((2 + anchored, 6, 8, 8) if step < 2 else (6, 8, 8))
        if step < 2:
            assert torch.equal(planes[DEPTH], depth)
    for given, twins in zip(model.unet.depths, _twins(guidance), strict=True):
        assert given is not None
        assert torch.equal(given, depth.expand(1 + twins, -1, -1, -1))


def _twins(guidance: Guidance) -> list[int]:
    """Samples under the negative prompt, by step."""
    return {Guidance.FULL: [1, 1, 1], Guidance.INITIALIZE: [1, 0, 0]}.get(guidance, [0, 0, 0])


@pytest.mark.parametrize("guidance", Guidance)
def test_a_window_without_a_view_is_its_frames_one_by_one(guidance: Guidance) -> None:
    """What is not attention is per sample: noise by ordinal, prompt, guidance and depth."""
    settings = Settings("a", 0.8, 2, guidance=guidance, guidance_scale=1.5, negative_prompt="b")
    together = row(settings, 0, latents(2), window=True)
    assert together.width == FRAMES * (1 + (guidance in (Guidance.FULL, Guidance.INITIALIZE)))
    found = run(denoiser(), together)
    assert len(found) == FRAMES
    for sample, output in zip(together.samples(), found, strict=True):
        torch.testing.assert_close(output, dict(run(denoiser(), sample)[0]), rtol=1e-5, atol=1e-5)


def test_a_session_without_a_cache_has_no_depth() -> None:
    model = denoiser()
    (output,) = run(model, row(Settings("a", 0.8, 2), 0, latents(1), cache=False))
    assert stacked(output).shape == (6, 8, 8)
    assert model.unet.depths == [None]


def test_a_payload_without_its_depth_is_an_error() -> None:
    with pytest.raises(AssertionError, match="step 0 got"):
        run(denoiser(), row(Settings("a", 0.8, 2), 0, latents(1)))
