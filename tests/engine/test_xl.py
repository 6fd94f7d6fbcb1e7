"""Stable Diffusion XL against diffusers' own img2img pipeline, on the same noise.

Compared are all inputs of every UNet call (latent, timestep, tokens, pooled text, sizes) and the latent after
each step (1e-4), in checkpoints of the layouts of SDXL's base, SDXL-Turbo and Lightning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as pipeline_module
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral_module
from diffusers.schedulers import scheduling_lcm as lcm_module
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.networks.conditioning import slerp
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.encode import encode
from rearview.engine.networks.sampling import noise
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.weights.checkpoint import load_denoiser, load_denoisers, load_vae
from rearview.engine.weights.formats import Additions
from rearview.errors import ConfigError
from support.their_latents import their_latents
from support.tiny import SCHEDULER, TOKENS, random_frames
from support.tiny_xl import POOLED, WIDTHS, XL_SCHEDULER, XL_TURBO_SCHEDULER, write_tiny_xl
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CLOSE = 1e-4
SCHEDULERS: dict[str, tuple[dict[str, Any], Any]] = {
    "base": (XL_SCHEDULER, EulerDiscreteScheduler),
    "turbo": (XL_TURBO_SCHEDULER, EulerAncestralDiscreteScheduler),
    "lightning": ({**XL_SCHEDULER, "timestep_spacing": "trailing"}, EulerDiscreteScheduler),
    "one-step lightning": (
        {**XL_SCHEDULER, "timestep_spacing": "trailing", "prediction_type": "sample"},
        EulerDiscreteScheduler,
    ),
    "lcm": (SCHEDULER, LCMScheduler),
}


def pipeline_of(folder: Path, scheduler: Any) -> StableDiffusionXLImg2ImgPipeline:
    """Networks of diffusers' own, with its own attention."""
    is_kl = "AutoencoderKL" in (folder / "vae" / "config.json").read_text()
    made = StableDiffusionXLImg2ImgPipeline(
        vae=(AutoencoderKL if is_kl else AutoencoderTiny).from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer_2"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=scheduler,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def watched(unet: torch.nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """What a UNet is given, call by call."""
    seen: list[dict[str, Tensor]] = []

    def note(module: object, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        timestep = torch.as_tensor(given[1]).flatten()[:1].float()
        inputs = {"sample": given[0], "timestep": timestep, "tokens": named["encoder_hidden_states"]}
        inputs |= named["added_cond_kwargs"]
        if named.get("timestep_cond") is not None:
            inputs["scale"] = named["timestep_cond"]
        seen.append({name: tensor.detach().clone() for name, tensor in inputs.items()})

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def mode_of(encoded: Any, **_: object) -> Tensor:
    """Theirs draws from the posterior; ours takes its mode, so that no number is random there."""
    found: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return found


def hand_out(monkeypatch: pytest.MonkeyPatch, settings: Settings, ordinal: int, shape: Any) -> None:
    """Each draw of noise gets the next step's; ancestral sampling throws the last one away."""
    handed = (noise(settings, ordinal, step, shape)[None] for step in range(settings.steps + 1))
    for module in (pipeline_module, ancestral_module, lcm_module):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(handed))
    monkeypatch.setattr(pipeline_module, "retrieve_latents", mode_of)


@pytest.fixture(scope="module", params=list(SCHEDULERS))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Any, Denoiser]:
    """Name, diffusers' pipeline, our VAE and denoiser."""
    config, scheduler = SCHEDULERS[request.param]
    folder = write_tiny_xl(tmp_path_factory.mktemp("xl"), kl=request.param == "base", **config)
    pipeline = pipeline_of(folder, scheduler.from_config(config))
    return (
        request.param,
        pipeline,
        load_vae(folder, CPU, torch.float32),
        load_denoiser(folder, CPU, torch.float32),
    )


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_every_input_and_latent_equals_diffusers(
    case: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    name, pipeline, vae, denoiser = case
    image = torch.cat(random_frames(2), dim=1)[: size[0], : size[1]]
    rule = NoiseRule.FRESH if name in ("turbo", "lcm") else NoiseRule.FIXED
    settings = Settings("a boat", steps=3, seed=7, timestep_indices=(20, 30, 40), noise_rule=rule)
    how: dict[str, Any] = {"num_inference_steps": 5, "strength": 0.6}
    if name == "base":  # Its grid lies lower: 401, 201, 1.
        settings = Settings("a boat", steps=3, seed=7, timestep_indices=(29, 39, 49))
    if name == "lcm":
        timesteps = [step.timestep for step in denoiser.schedule.steps(settings)]
        how = {"timesteps": timesteps, "strength": 1.0}
    latent = (4, size[0] // 8, size[1] // 8)
    hand_out(monkeypatch, settings, 5, latent)
    with watched(pipeline.unet) as theirs:
        left = their_latents(pipeline, image, settings, guidance_scale=1.0, **how)
    with torch.inference_mode(), watched(denoiser.unet) as ours:
        z = encode(vae, image[None], torch.float32)
        final = denoise_latent(denoiser, z, settings, 5, torch.float32)
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() == {"sample", "timestep", "tokens", "text_embeds", "time_ids"}
        assert one["time_ids"].tolist() == [[*size, 0, 0, *size]]
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=CLOSE, atol=CLOSE, msg=key)
    steps = denoiser.schedule.steps(settings)
    for given, after, step in zip(ours[1:], left[:-1], steps[1:], strict=True):
        scale = 1.0 if name == "lcm" else step.alpha
        torch.testing.assert_close(given["sample"] / scale, after, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("case", ["lightning", "turbo"], indirect=True)
@pytest.mark.parametrize(
    ("steps", "timesteps"), [(4, (999, 749, 499, 249)), (3, (749, 499, 249)), (1, (249,))]
)
def test_the_last_of_four_steps_equal_diffusers(
    case: Any, monkeypatch: pytest.MonkeyPatch, steps: int, timesteps: tuple[int, ...]
) -> None:
    """By strength and steps, at Lightning's own timesteps, two of which no entry of the grid has."""
    _, pipeline, vae, denoiser = case
    (image,) = random_frames(1)
    settings = Settings("a boat", steps / 4, steps, 7, NoiseRule.FRESH)
    assert tuple(step.timestep for step in denoiser.schedule.steps(settings)) == timesteps
    hand_out(monkeypatch, settings, 0, (4, 8, 8))
    how = {"num_inference_steps": 4, "strength": steps / 4}
    with watched(pipeline.unet) as theirs:
        left = their_latents(pipeline, image, settings, guidance_scale=1.0, **how)
    with torch.inference_mode(), watched(denoiser.unet) as ours:
        z = encode(vae, image[None], torch.float32)
        final = denoise_latent(denoiser, z, settings, 0, torch.float32)
    for one, other in zip(ours, theirs, strict=True):
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=CLOSE, atol=CLOSE, msg=key)
    for given, after, step in zip(ours[1:], left[:-1], denoiser.schedule.steps(settings)[1:], strict=True):
        torch.testing.assert_close(given["sample"] / step.alpha, after, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("case", [name for name in SCHEDULERS if name != "lcm"], indirect=True)
def test_full_guidance_equals_diffusers(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative prompt is pooled, too. Diffusers' LCM is never guided so."""
    name, pipeline, vae, denoiser = case
    (image,) = random_frames(1)
    at = 24 if name == "base" else 25
    settings = Settings(
        "a boat",
        steps=1,
        timestep_indices=(at,),
        guidance=Guidance.FULL,
        guidance_scale=3.0,
        negative_prompt="fog",
    )
    hand_out(monkeypatch, settings, 0, (4, 8, 8))
    # Ancestral sampling takes no list. Of its two steps the second one is at 499.
    how: dict[str, Any] = {"num_inference_steps": 2, "strength": 0.5}
    if name != "turbo":
        how = {"timesteps": [denoiser.schedule.timestep(at)], "strength": 1.0}
    left = their_latents(pipeline, image, settings, guidance_scale=3.0, negative_prompt="fog", **how)
    with torch.inference_mode():
        z = encode(vae, image[None], torch.float32)
        final = denoise_latent(denoiser, z, settings, 0, torch.float32)
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("skipped", [0, 1])
def test_prompts_of_two_encoders_equal_diffusers(tmp_path: Path, skipped: int) -> None:
    """Also with layers left out. Both encoders' tokens and the pooled text lie in one embedding."""
    folder = write_tiny_xl(tmp_path / "xl")
    pipeline = pipeline_of(folder, None)
    additions = Additions(clip_skip=skipped)
    denoiser = load_denoisers(folder, CPU, torch.float32, additions)[""]
    tokens, _, pooled, _ = pipeline.encode_prompt("a boat", device=CPU, clip_skip=skipped or None)
    embedding = denoiser.conditioning.embed("a boat")
    assert embedding.shape == (1, TOKENS + 1, sum(WIDTHS))
    found, more = denoiser.text(embedding, torch.zeros(1, 4, 8, 12))
    torch.testing.assert_close(found, tokens, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(more["text_embeds"], pooled, rtol=CLOSE, atol=CLOSE)
    assert more["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]]
    with pytest.raises(ConfigError, match=r"clip_skip 3 leaves nothing of a text encoder of 3 layers"):
        load_denoisers(folder, CPU, torch.float32, Additions(clip_skip=2))


def test_a_blend_mixes_tokens_and_pooled_text_alike() -> None:
    """By the same rule: along the great circle, each token and the pooled text by itself."""
    generator = torch.Generator().manual_seed(0)
    tokens, pooled = torch.randn(2, 1, TOKENS, 56, generator=generator), torch.randn(2, 1, POOLED)
    packed = [
        torch.cat([one, torch.nn.functional.pad(text, (0, 56 - POOLED))[:, None]], dim=1)
        for one, text in zip(tokens, pooled, strict=True)
    ]
    mixed = slerp(*packed, 0.3)
    torch.testing.assert_close(mixed[:, :-1], slerp(*tokens, 0.3))
    torch.testing.assert_close(mixed[:, -1, :POOLED], slerp(*pooled[:, :, None], 0.3)[:, 0])
    assert not mixed[:, -1, POOLED:].any()
