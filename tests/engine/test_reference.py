"""The plain path against diffusers' own img2img pipeline, given the same noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as pipeline_module
from diffusers.schedulers import scheduling_lcm as scheduler_module
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.networks.decode import decode
from rearview.engine.networks.encode import encode
from rearview.engine.networks.sampling import noise
from rearview.engine.reference.frame import denoise_latent, translate_frame
from rearview.engine.weights.checkpoint import load_denoiser, load_vae
from support.tiny import LATENT_CHANNELS, SCHEDULER, SIZE, random_frames
from transformers import CLIPTextModel, CLIPTokenizer

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CLOSE = 1e-5
LATENT = (LATENT_CHANNELS, SIZE // 8, SIZE // 8)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "linear"])
def folder(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint under each kind of schedule."""
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    shutil.copytree(checkpoint, folder)
    change = {"beta_schedule": "linear"} if request.param == "linear" else {"prediction_type": request.param}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**SCHEDULER, **change}))
    return folder


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionImg2ImgPipeline:
    """Diffusers' pipeline over networks of its own, with its own attention."""
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=AutoencoderTiny.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=LCMScheduler.from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _by_diffusers(
    pipeline: StableDiffusionImg2ImgPipeline,
    monkeypatch: pytest.MonkeyPatch,
    image_HWC: torch.Tensor,
    settings: Settings,
    timesteps: list[int],
    ordinal: int,
) -> torch.Tensor:
    """The final latent (1, C, h, w). Each draw of noise gets the next step's."""
    handed = (noise(settings, ordinal, step, LATENT)[None] for step in range(settings.steps))

    def draw(shape: object, *arguments: object, **options: object) -> torch.Tensor:
        found = next(handed)
        assert tuple(found.shape) == tuple(shape)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(pipeline_module, "randn_tensor", draw)
    monkeypatch.setattr(scheduler_module, "randn_tensor", draw)
    latent: torch.Tensor = pipeline(
        prompt=settings.prompt,
        image=image_HWC.permute(2, 0, 1)[None].float() / 255.0,
        strength=1.0,
        timesteps=timesteps,
        guidance_scale=1.0,
        output_type="latent",
    ).images
    assert next(handed, None) is None, "diffusers drew less noise than there are steps"
    return latent


@pytest.fixture(scope="module")
def parts(folder: Path) -> tuple[Any, Any]:
    return load_vae(folder, CPU, torch.float32), load_denoiser(folder, CPU, torch.float32)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_the_reference_equals_diffusers_img2img_with_the_same_noise(
    pipeline: StableDiffusionImg2ImgPipeline,
    parts: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    strength: float,
) -> None:
    vae, denoiser = parts
    (image,) = random_frames(1, seed=steps)
    settings = Settings(prompt="a boat", strength=strength, steps=steps, seed=7, noise_rule=NoiseRule.FRESH)
    timesteps = [step.timestep for step in denoiser.schedule.steps(settings)]
    theirs = _by_diffusers(pipeline, monkeypatch, image, settings, timesteps, ordinal=3)
    with torch.inference_mode():
        latent = encode(vae, image[None], torch.float32)
        ours = denoise_latent(denoiser, latent, settings, 3, torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=CLOSE, atol=CLOSE)
    assert (ours - latent).abs().max() > 0.01, "nothing was denoised"


def test_the_picture_equals_diffusers_decoding_of_that_latent(
    pipeline: StableDiffusionImg2ImgPipeline, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, denoiser = parts
    (image,) = random_frames(1)
    settings = Settings(prompt="a boat", strength=0.6, steps=2, seed=1)
    timesteps = [step.timestep for step in denoiser.schedule.steps(settings)]
    latent = _by_diffusers(pipeline, monkeypatch, image, settings, timesteps, ordinal=0)
    with torch.inference_mode():
        decoded = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    levels_BCHW = pipeline.image_processor.postprocess(decoded, output_type="pt") * 255.0
    ours = translate_frame(vae, denoiser, image, settings, 0, torch.float32)
    assert ours.shape == image.shape
    assert (ours.permute(2, 0, 1).float() - levels_BCHW[0]).abs().max() <= 0.5 + 1e-2
    assert ours.float().std() > 1.0, "the picture is flat"


def test_encode_scales_as_diffusers_does(
    pipeline: StableDiffusionImg2ImgPipeline, parts: tuple[Any, Any]
) -> None:
    (image,) = random_frames(1)
    pixels = pipeline.image_processor.preprocess(image.permute(2, 0, 1)[None].float() / 255.0)
    with torch.inference_mode():
        theirs = pipeline.vae.encode(pixels).latents * pipeline.vae.config.scaling_factor
        ours = encode(parts[0], image[None], torch.float32)
    assert (ours - theirs).abs().max() <= CLOSE


def test_a_picture_that_is_not_a_number_is_grey(parts: tuple[Any, Any]) -> None:
    latent = torch.full((1, *LATENT), float("nan"))
    with torch.inference_mode():
        picture = decode(parts[0], latent, torch.float32)
    assert picture.unique().tolist() == [128]


def test_b8_a_perfect_denoiser_returns_the_input(
    parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was mixed in, a UNet that tells the noise (or the velocity) exactly takes it out again."""
    denoiser = parts[1]
    latent = torch.randn((1, *LATENT), generator=torch.Generator().manual_seed(0))
    alphas = denoiser.schedule._alphas_cumprod

    def oracle(x: torch.Tensor, timestep: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        alpha, beta = alphas[timestep] ** 0.5, (1.0 - alphas[timestep]) ** 0.5
        epsilon = (x - alpha * latent) / beta
        is_velocity = denoiser.schedule.prediction_type == "v_prediction"
        return (alpha * epsilon - beta * latent if is_velocity else epsilon,)

    monkeypatch.setattr(denoiser, "unet", oracle)
    for steps in (1, 2, 3, 4):
        for ordinal in (0, 5):
            found = denoise_latent(denoiser, latent, Settings("a", 0.6, steps), ordinal, torch.float32)
            assert (found - latent).abs().max() <= 1e-4  # 1/alpha amplifies rounding.
