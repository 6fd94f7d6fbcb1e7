"""Euler's two and embedded scales of guidance against diffusers' own pipelines, on the same noise.

Compared are the inputs of every UNet call and the latent after each step (1e-4), in checkpoints of SD-Turbo's
and LCM Dreamshaper's layout.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.latent_consistency_models import (
    pipeline_latent_consistency_img2img as lcm_pipeline_module,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as pipeline_module
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral_module
from diffusers.schedulers import scheduling_lcm as lcm_scheduler_module
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.encode import encode
from rearview.engine.networks.sampling import noise
from rearview.engine.networks.scale_embedding import embed_scales
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.weights.checkpoint import load_denoiser, load_denoisers, load_vae
from rearview.engine.weights.formats import Additions
from rearview.errors import ConfigError
from support.their_latents import their_latents
from support.tiny import SIZE, random_frames
from support.tiny_turbo import ANCESTRAL_SCHEDULER, TURBO_SCHEDULER, write_tiny_lcm, write_tiny_turbo
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CLOSE = 1e-4
LATENT = (4, SIZE // 8, SIZE // 8)


@dataclass
class Watched:
    """What a UNet was given, call by call."""

    samples: list[Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    prompts: list[Tensor] = field(default_factory=list)
    scales: list[Tensor | None] = field(default_factory=list)

    def equals(self, other: Watched) -> None:
        assert self.timesteps == other.timesteps
        assert len(self.samples) == len(self.timesteps) > 0
        for name in ("samples", "prompts", "scales"):
            for ours, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                if theirs is not None:
                    torch.testing.assert_close(ours, theirs, rtol=CLOSE, atol=CLOSE)
        assert [one is None for one in self.scales] == [one is None for one in other.scales]


@contextmanager
def watched(unet: torch.nn.Module) -> Iterator[Watched]:
    seen = Watched()

    def note(module: object, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.samples.append(given[0].detach().clone())
        seen.timesteps.append(int(torch.as_tensor(given[1]).flatten()[0]))
        seen.prompts.append(named["encoder_hidden_states"])
        seen.scales.append(named.get("timestep_cond"))

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def parts_of(folder: Path) -> dict[str, Any]:
    """Networks of diffusers' own, with its own attention."""
    return {
        "vae": AutoencoderTiny.from_pretrained(folder, subfolder="vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def turbo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD-Turbo's layout; SD 2.1's prediction of velocities as well."""
    return write_tiny_turbo(tmp_path_factory.mktemp("turbo"), prediction_type=request.param)


@pytest.fixture(scope="module")
def pipeline(turbo: Path) -> StableDiffusionImg2ImgPipeline:
    scheduler = EulerDiscreteScheduler.from_pretrained(turbo, subfolder="scheduler")
    made = StableDiffusionImg2ImgPipeline(**parts_of(turbo), scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def ours(turbo: Path) -> tuple[Any, Denoiser]:
    return load_vae(turbo, CPU, torch.float32), load_denoiser(turbo, CPU, torch.float32)


def hand_out(monkeypatch: pytest.MonkeyPatch, settings: Settings, ordinal: int, *modules: Any) -> None:
    """Each draw of noise gets the next step's."""
    # Ancestral sampling draws after the last step, too, and throws that away.
    handed = (noise(settings, ordinal, step, LATENT)[None] for step in range(settings.steps + 1))
    for module in modules:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(handed))


def scheduler_of(folder: Path, class_name: object, **values: Any) -> dict[str, Any]:
    """The scheduler's settings of a checkpoint, changed."""
    known = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {**known, "_class_name": class_name, **values}


def with_scheduler(folder: Path, place: Path, config: dict[str, Any]) -> Path:
    """A checkpoint's copy with other settings of its scheduler."""
    copy = Path(shutil.copytree(folder, place / "copy"))
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return copy


def our_latents(
    ours: tuple[Any, Denoiser], image_HWC: Tensor, settings: Settings, ordinal: int
) -> tuple[list[Tensor], Watched]:
    """By the plain path: the clean latent, and what its UNet saw."""
    vae, denoiser = ours
    with torch.inference_mode(), watched(denoiser.unet) as seen:
        z = encode(vae, image_HWC[None], torch.float32)
        return [denoise_latent(denoiser, z, settings, ordinal, torch.float32)], seen


@pytest.mark.parametrize("indices", [(0,), (25,), (25, 37), (25, 34, 43), (0, 12, 25, 37), (30, 30, 44)])
def test_euler_equals_diffusers_at_any_timesteps(
    pipeline: Any, ours: Any, monkeypatch: pytest.MonkeyPatch, indices: tuple[int, ...]
) -> None:
    (image,) = random_frames(1, seed=len(indices))
    settings = Settings("a boat", steps=len(indices), seed=7, timestep_indices=indices)
    hand_out(monkeypatch, settings, 0, pipeline_module)
    steps = ours[1].schedule.steps(settings)
    assert [step.timestep for step in steps] == [999 - 20 * index for index in indices]
    with watched(pipeline.unet) as theirs:
        left = their_latents(
            pipeline,
            image,
            settings,
            timesteps=[step.timestep for step in steps],
            strength=1.0,
            guidance_scale=1.0,
        )
    (final,), seen = our_latents(ours, image, settings, 0)
    seen.equals(theirs)
    # Theirs are x / alpha: what enters the next step, before it is scaled for the UNet.
    for entering, latent, step in zip(seen.samples[1:], left[:-1], steps[1:], strict=True):
        torch.testing.assert_close(entering / step.alpha, latent, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


def test_one_step_at_half_strength_is_what_the_authors_of_sd_turbo_run(
    pipeline: Any, ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = random_frames(1)
    settings = Settings("a boat", strength=0.5, steps=1, seed=3)
    hand_out(monkeypatch, settings, 0, pipeline_module)
    how = {"num_inference_steps": 2, "strength": 0.5, "guidance_scale": 0.0}
    with watched(pipeline.unet) as theirs:
        left = their_latents(pipeline, image, settings, **how)
    assert theirs.timesteps == [499]
    assert theirs.prompts[0].shape[-1] == 1024
    (final,), seen = our_latents(ours, image, settings, 0)
    seen.equals(theirs)
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("rule", [NoiseRule.FIXED, NoiseRule.FRESH])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_euler_ancestral_equals_diffusers(
    turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: str, rule: NoiseRule
) -> None:
    """Three of five steps over the schedule, which are entries 20, 30 and 40 of the grid, or beside them."""
    config = scheduler_of(turbo, ANCESTRAL_SCHEDULER["_class_name"], timestep_spacing=spacing)
    copy = with_scheduler(turbo, tmp_path, config)
    pipeline = StableDiffusionImg2ImgPipeline(
        **parts_of(turbo), scheduler=EulerAncestralDiscreteScheduler.from_config(config)
    )
    pipeline.set_progress_bar_config(disable=True)
    ours = load_vae(copy, CPU, torch.float32), load_denoiser(copy, CPU, torch.float32)
    (image,) = random_frames(1)
    indices = (20, 30, 40) if spacing == "trailing" else (29, 39, 49)
    settings = Settings("a boat", steps=3, seed=7, timestep_indices=indices, noise_rule=rule)
    hand_out(monkeypatch, settings, 5, pipeline_module, ancestral_module)
    how = {"num_inference_steps": 5, "strength": 0.6, "guidance_scale": 1.0}
    with watched(pipeline.unet) as theirs:
        left = their_latents(pipeline, image, settings, **how)
    assert theirs.timesteps == ([599, 399, 199] if spacing == "trailing" else [401, 201, 1])
    (final,), seen = our_latents(ours, image, settings, 5)
    seen.equals(theirs)
    steps = ours[1].schedule.steps(settings)
    for entering, latent, step in zip(seen.samples[1:], left[:-1], steps[1:], strict=True):
        torch.testing.assert_close(entering / step.alpha, latent, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


def test_a_prediction_of_the_clean_picture_equals_diffusers(
    turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning's weights for one step make it: Euler, `sample`."""
    config = scheduler_of(turbo, TURBO_SCHEDULER["_class_name"], prediction_type="sample")
    copy = with_scheduler(turbo, tmp_path, config)
    pipeline = StableDiffusionImg2ImgPipeline(
        **parts_of(turbo), scheduler=EulerDiscreteScheduler.from_config(config)
    )
    pipeline.set_progress_bar_config(disable=True)
    ours = load_vae(copy, CPU, torch.float32), load_denoiser(copy, CPU, torch.float32)
    (image,) = random_frames(1)
    settings = Settings("a boat", steps=2, seed=7, timestep_indices=(0, 25))
    hand_out(monkeypatch, settings, 0, pipeline_module)
    how = {"timesteps": [999, 499], "strength": 1.0, "guidance_scale": 1.0}
    with watched(pipeline.unet) as theirs:
        left = their_latents(pipeline, image, settings, **how)
    (final,), seen = our_latents(ours, image, settings, 0)
    seen.equals(theirs)
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("skipped", [0, 1])
def test_skipped_layers_of_the_text_encoder_equal_diffusers(turbo: Path, pipeline: Any, skipped: int) -> None:
    denoiser = load_denoisers(turbo, CPU, torch.float32, Additions(clip_skip=skipped))[""]
    # Diffusers looks for a wrapper that newer versions of transformers do without.
    pipeline.text_encoder.__dict__.setdefault("text_model", pipeline.text_encoder)
    wanted, _ = pipeline.encode_prompt("a boat", CPU, 1, False, clip_skip=skipped or None)
    found = denoiser.conditioning.embed("a boat")
    torch.testing.assert_close(found, wanted, rtol=CLOSE, atol=CLOSE)
    other = load_denoiser(turbo, CPU, torch.float32).conditioning.embed("a boat")
    assert torch.allclose(found, other) is (skipped == 0)


def test_more_skipped_layers_than_there_are_is_refused(turbo: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.clip_skip 2 .* 2 layers"):
        load_denoisers(turbo, CPU, torch.float32, Additions(clip_skip=2))


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lcm(tmp_path_factory.mktemp("lcm"))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 7.5, 14.0])
def test_an_embedded_scale_equals_diffusers(
    lcm: Path, monkeypatch: pytest.MonkeyPatch, steps: int, scale: float
) -> None:
    scheduler = LCMScheduler.from_pretrained(lcm, subfolder="scheduler")
    pipeline = LatentConsistencyModelImg2ImgPipeline(**parts_of(lcm), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    ours = load_vae(lcm, CPU, torch.float32), load_denoiser(lcm, CPU, torch.float32)
    (image,) = random_frames(1)
    settings = Settings("a boat", strength=0.6, steps=steps, guidance_scale=scale, noise_rule=NoiseRule.FRESH)
    hand_out(monkeypatch, settings, 5, lcm_pipeline_module, lcm_scheduler_module)
    with watched(pipeline.unet) as theirs:
        left = their_latents(
            pipeline,
            image,
            settings,
            timesteps=[step.timestep for step in ours[1].schedule.steps(settings)],
            strength=1.0,
            guidance_scale=scale,
        )
    (final,), seen = our_latents(ours, image, settings, 5)
    assert seen.scales[0] is not None
    seen.equals(theirs)
    assert len(left) == steps
    torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


def test_scales_are_embedded_row_by_row_and_change_the_picture(lcm: Path) -> None:
    embedded = embed_scales([1.0, 8.0, 1.0], 33)
    assert embedded.shape == (3, 33)
    assert torch.equal(embedded[0], embedded[2])
    assert not torch.equal(embedded[0], embedded[1])
    ours = load_vae(lcm, CPU, torch.float32), load_denoiser(lcm, CPU, torch.float32)
    (image,) = random_frames(1)
    made = [our_latents(ours, image, Settings("a", guidance_scale=scale), 0)[0][0] for scale in (1.0, 8.0)]
    assert (made[0] - made[1]).abs().max() > 1e-2
