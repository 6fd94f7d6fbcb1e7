"""ControlNets against diffusers' own pipeline, on the same noise and the same control pictures.

Compared are the UNet's inputs in every step, its residuals among them, and the latent after each step (1e-4).
Nothing that starts at zero is zero here, and each control is first seen to move the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    EulerDiscreteScheduler,
    LCMScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.controlnet import pipeline_controlnet_img2img as pipeline_module
from diffusers.schedulers import scheduling_lcm as lcm_module
from rearview.contract.chain import Span, chain
from rearview.contract.controls import ControlPicture, WeightedControl
from rearview.contract.frame import control_plane
from rearview.contract.sampler import Sampler
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.networks.control_pictures import ControlPictures, canny
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions, ControlFile
from support.parity import CLOSE, MOVES, go_by, hand_noise, latent_of, noting_latents
from support.tiny import SIZE, random_frames
from support.tiny_control import write_tiny_control
from support.tiny_turbo import write_tiny_lcm, write_tiny_turbo
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
PICTURES = {"edges": ControlPicture.CANNY, "tile": ControlPicture.TILE}
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")


@pytest.fixture(scope="module", params=[Sampler.EULER, Sampler.LCM], ids=lambda each: each.name.lower())
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Path]]:
    """A checkpoint in SD-Turbo's or Stable Diffusion 1.5's layout, and two ControlNets for it."""
    folder = tmp_path_factory.mktemp("controlled")
    is_euler = request.param is Sampler.EULER
    checkpoint = write_tiny_turbo(folder / "it") if is_euler else write_tiny_lcm(folder / "it", scale=False)
    return checkpoint, {
        name: write_tiny_control(folder / name, checkpoint, seed) for seed, name in enumerate(PICTURES)
    }


@pytest.fixture(scope="module")
def model(folders: tuple[Path, dict[str, Path]]) -> DiffusionModel:
    checkpoint, controls = folders
    files = {name: ControlFile(str(path), PICTURES[name]) for name, path in controls.items()}
    made = load_model(str(checkpoint), whole(), CPU, torch.float32, Additions(controls=files))
    assert isinstance(made, DiffusionModel)
    return made


def whole() -> Span:
    return Span("latent", chain(4)[:-1])


def pipeline_of(folders: tuple[Path, dict[str, Path]], names: Sequence[str]) -> Any:
    """Diffusers' own, with networks of its own."""
    folder, controls = folders
    is_euler = "Euler" in (folder / "scheduler" / "scheduler_config.json").read_text()
    kind = EulerDiscreteScheduler if is_euler else LCMScheduler
    networks = [ControlNetModel.from_pretrained(controls[name]) for name in names]
    made = StableDiffusionControlNetImg2ImgPipeline(
        vae=AutoencoderTiny.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=kind.from_pretrained(folder, subfolder="scheduler"),
        controlnet=networks[0] if len(networks) == 1 else MultiControlNetModel(networks),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def watched(unet: torch.nn.Module) -> Iterator[list[list[Tensor]]]:
    """Of each call: the sample, and the residuals."""
    seen: list[list[Tensor]] = []

    def note(module: object, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        down, middle = (named.get(name) for name in RESIDUALS)
        residuals = [] if down is None else [*down, middle]
        seen.append([each.detach().clone() for each in (given[0], *residuals)])

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def by_diffusers(
    pipeline: Any,
    monkeypatch: pytest.MonkeyPatch,
    image_HWC: Tensor,
    settings: Settings,
    timesteps: Sequence[int],
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The latent after each step, in diffusers' scale, and what the UNet saw."""
    hand_noise(monkeypatch, [pipeline_module, lcm_module], settings)
    go_by(monkeypatch, pipeline.scheduler, timesteps)
    acting = settings.acting_controls
    shown = [shown_to(image_HWC, one.name).permute(2, 0, 1)[None].float() / 255.0 for one in acting]
    weights = [one.weight for one in acting]
    left: list[Tensor] = []
    with watched(pipeline.unet) as seen:
        final: Tensor = pipeline(
            prompt=settings.prompt,
            negative_prompt=settings.negative_prompt,
            image=image_HWC.permute(2, 0, 1)[None].float() / 255.0,
            control_image=shown[0] if len(shown) == 1 else shown,
            controlnet_conditioning_scale=weights[0] if len(weights) == 1 else weights,
            num_inference_steps=settings.steps,
            strength=1.0,
            guidance_scale=settings.guidance_scale,
            output_type="latent",
            callback_on_step_end=noting_latents(left),
        ).images
    return [*left[:-1], final], seen


def shown_to(image_HWC: Tensor, name: str) -> Tensor:
    return canny(image_HWC[None])[0] if PICTURES[name] is ControlPicture.CANNY else image_HWC


def asked(steps: int, controls: Sequence[tuple[str, float]], **more: Any) -> Settings:
    """Fresh noise, since LCM's scheduler draws for every step."""
    chosen = tuple(WeightedControl(*one) for one in controls)
    return Settings("a boat", 0.6, steps, 7, NoiseRule.FRESH, controls=chosen, **more)


def frame() -> Tensor:
    """Large bright shapes, with edges to find."""
    (image,) = random_frames(1, seed=3)
    return image.view(8, 8, 8, 8, 3)[:, :1, :, :1].expand(8, 8, 8, 8, 3).reshape(SIZE, SIZE, 3).contiguous()


def plain(model: DiffusionModel, settings: Settings) -> tuple[Tensor, list[list[Tensor]]]:
    """The clean latent of the plain path, and what its UNet saw."""
    denoiser, image = model.denoisers[""], frame()
    shown = {one.name: shown_to(image, one.name) for one in settings.acting_controls}
    with torch.inference_mode(), watched(denoiser.unet) as seen:
        z = encode(model.vae, image[None], torch.float32)
        return denoise_latent(denoiser, z, settings, 0, torch.float32, shown=shown), seen


def by_engine(model: DiffusionModel, settings: Settings) -> tuple[Tensor, list[list[Tensor]]]:
    """The same of an engine."""
    with watched(model.denoisers[""].unet) as seen:
        return latent_of(model, whole(), settings, frame()), seen


CONTROLS = {
    "one": [("edges", 0.8)],
    "two": [("edges", 0.7), ("tile", 1.1)],
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_move_the_picture(model: DiffusionModel, name: str) -> None:
    """As latents, whose size is about 1: the decoder is random, too, and makes nearly the same of all."""
    without, under = (plain(model, asked(2, controls))[0] for controls in ([], CONTROLS[name]))
    assert (without - under).square().mean().sqrt() >= MOVES


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_step_equals_diffusers(
    folders: tuple[Path, dict[str, Path]],
    model: DiffusionModel,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    steps: int,
) -> None:
    settings = asked(steps, CONTROLS[name])
    schedule = model.denoisers[""].schedule
    pipeline = pipeline_of(folders, [one.name for one in settings.acting_controls])
    timesteps = [step.timestep for step in schedule.steps(settings)]
    left, theirs = by_diffusers(pipeline, monkeypatch, frame(), settings, timesteps)
    for final, seen in (plain(model, settings), by_engine(model, settings)):
        assert [len(call) for call in seen] == [len(call) for call in theirs] == [10] * steps
        for mine, its in zip(seen, theirs, strict=True):
            for ours, other in zip(mine, its, strict=True):
                torch.testing.assert_close(ours, other, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)
        if schedule.sampler is Sampler.EULER:  # Theirs are x / alpha, before it is scaled for the UNet.
            alphas = [step.alpha for step in schedule.steps(settings)]
            for call, latent, alpha in zip(seen[1:], left[:-1], alphas[1:], strict=True):
                torch.testing.assert_close(call[0] / alpha, latent, rtol=CLOSE, atol=CLOSE)
        else:
            for call, latent in zip(seen[1:], left[:-1], strict=True):
                torch.testing.assert_close(call[0], latent, rtol=CLOSE, atol=CLOSE)


def test_full_guidance_controls_both_predictions_as_diffusers_does(
    folders: tuple[Path, dict[str, Path]], model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"guidance": Guidance.FULL, "guidance_scale": 3.0, "negative_prompt": "zebra"}
    settings = asked(2, CONTROLS["two"], **how)
    timesteps = [step.timestep for step in model.denoisers[""].schedule.steps(settings)]
    pipeline = pipeline_of(folders, [one.name for one in settings.acting_controls])
    left, _ = by_diffusers(pipeline, monkeypatch, frame(), settings, timesteps)
    for final, _ in (plain(model, settings), by_engine(model, settings)):
        torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


def test_a_weight_of_0_is_as_without(model: DiffusionModel) -> None:
    found = [by_engine(model, asked(2, controls)) for controls in ([], [("edges", 0.0), ("tile", 0.0)])]
    assert torch.equal(found[0][0], found[1][0])
    assert [len(call) for call in found[1][1]] == [1, 1]


def test_what_is_shown_is_drawn_by_the_service() -> None:
    pictures = ControlPictures(PICTURES, {}, torch.float32)
    under = [asked(1, CONTROLS["two"][::-1]), asked(1, [])]
    shown = pictures.draw(torch.stack([frame()] * 2), under, [{}, {}])
    assert shown[1] == {}
    assert shown[0].keys() == {control_plane(name) for name in PICTURES}
    assert all(torch.equal(shown[0][control_plane(name)], shown_to(frame(), name)) for name in PICTURES)
