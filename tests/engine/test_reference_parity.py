"""Reference images against diffusers' own pipeline with `load_ip_adapter`, on the same noise and picture.

Compared are the UNet's inputs in every step, the picture's tokens among them, and the latent after each step
(1e-4). Nothing in the adapters is zero, and each reference is first seen to move the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, LCMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as pipeline_module
from diffusers.schedulers import scheduling_lcm as lcm_module
from PIL import Image
from rearview.contract.chain import Span, chain
from rearview.contract.reference import NO_IMAGE
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.reference_image import REFERENCE, pixels_of
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions, ReferenceFile
from support.parity import CLOSE, MOVES, go_by, hand_noise, latent_of, noting_latents
from support.tiny import SIZE, random_frames
from support.tiny_reference import ENCODER_SIDE, TOKENS, half_mask, pixels, png, reference_file, tensors_of
from support.tiny_turbo import write_tiny_lcm
from support.tiny_xl import write_tiny_xl
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
SHOWN = pixels(5)
HALF = half_mask(SIZE, SIZE)
Place = tuple[Path, ReferenceFile]


@pytest.fixture(scope="module", params=["plain.safetensors", "plain.bin", "plus.safetensors", "plus.bin"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A checkpoint in Stable Diffusion 1.5's layout, and an adapter for it."""
    folder, (kind, ending) = tmp_path_factory.mktemp("referring"), request.param.split(".")
    checkpoint = write_tiny_lcm(folder / "it", scale=False)
    return checkpoint, reference_file(folder / kind, checkpoint, kind, f".{ending}")


@pytest.fixture(scope="module")
def model(place: Place) -> DiffusionModel:
    made = load_model(str(place[0]), whole(), CPU, torch.float32, Additions(reference=place[1]))
    assert isinstance(made, DiffusionModel)
    return made


def whole() -> Span:
    return Span("latent", chain(4)[:-1])


def pipeline_of(place: Place) -> Any:
    """Diffusers' own, with networks of its own."""
    folder, file = place
    made = StableDiffusionImg2ImgPipeline(
        vae=AutoencoderTiny.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=LCMScheduler.from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size=ENCODER_SIDE, crop_size=ENCODER_SIDE),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(file.image_encoder),
        requires_safety_checker=False,
    )
    path = Path(file.path)
    made.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, low_cpu_mem_usage=False)
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def watched(unet: torch.nn.Module) -> Iterator[list[tuple[Tensor, Tensor | None]]]:
    """Of each call: the sample, and the tokens of the reference, by whichever of both ways they are given."""
    seen: list[tuple[Tensor, Tensor | None]] = []

    def note(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = named.get(REFERENCE)
        if "image_embeds" in (added := named.get("added_cond_kwargs") or {}):
            with torch.no_grad():
                (tokens,) = module.encoder_hid_proj(added["image_embeds"])
            tokens = tokens[:, 0]
        seen.append((given[0].detach().clone(), tokens))

    handle = unet.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
    try:
        yield seen
    finally:
        handle.remove()


def by_diffusers(
    place: Place, monkeypatch: pytest.MonkeyPatch, settings: Settings, timesteps: Sequence[int]
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor | None]]]:
    """The latent after each step, and what the UNet saw."""
    pipeline = pipeline_of(place)
    hand_noise(monkeypatch, [pipeline_module, lcm_module], settings)
    go_by(monkeypatch, pipeline.scheduler, timesteps)
    pipeline.set_ip_adapter_scale(settings.reference_scale)
    mask = torch.from_numpy(HALF)[None, None] / 255.0 if settings.reference_mask else None
    left: list[Tensor] = []
    with watched(pipeline.unet) as seen:
        final: Tensor = pipeline(
            prompt=settings.prompt,
            negative_prompt=settings.negative_prompt,
            image=frame().permute(2, 0, 1)[None].float() / 255.0,
            ip_adapter_image=Image.fromarray(SHOWN),
            cross_attention_kwargs=None if mask is None else {"ip_adapter_masks": [mask]},
            num_inference_steps=settings.steps,
            strength=1.0,
            guidance_scale=settings.guidance_scale,
            output_type="latent",
            callback_on_step_end=noting_latents(left),
        ).images
    return [*left[:-1], final], seen


def frame() -> Tensor:
    return random_frames(1, seed=3)[0]


def asked(steps: int, scale: float = 0.8, **more: Any) -> Settings:
    """Fresh noise, since LCM's scheduler draws for every step."""
    how = {"reference": png(SHOWN), "reference_scale": scale, **more}
    return Settings("a boat", 0.6, steps, 7, NoiseRule.FRESH, **how)


def plain(model: DiffusionModel, settings: Settings) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
    """The clean latent of the plain path, and what its UNet saw."""
    denoiser = model.denoisers[""]
    with torch.inference_mode(), watched(denoiser.unet) as seen:
        z = encode(model.vae, frame()[None], torch.float32)
        return denoise_latent(denoiser, z, settings, 0, torch.float32), seen


def by_engine(model: DiffusionModel, settings: Settings) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
    """The same of an engine."""
    with watched(model.denoisers[""].unet) as seen:
        return latent_of(model, whole(), settings, frame()), seen


MASKED = {"reference_mask": png(HALF)}
WAYS = {"whole": {}, "masked": MASKED}


def rms(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())


@pytest.mark.parametrize("way", WAYS)
def test_a_reference_moves_the_picture(model: DiffusionModel, way: str) -> None:
    """As latents, whose size is about 1: the decoder is random, too, and makes nearly the same of all."""
    without, under, others = (
        plain(model, asked(2, **{**WAYS[way], **more}))[0]
        for more in ({"reference": NO_IMAGE}, {}, {"reference": png(pixels(6))})
    )
    assert rms(without, under) >= MOVES
    assert rms(others, under) >= MOVES / 5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_step_equals_diffusers(
    place: Place, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, way: str, steps: int
) -> None:
    settings = asked(steps, **WAYS[way])
    timesteps = [step.timestep for step in model.denoisers[""].schedule.steps(settings)]
    left, theirs = by_diffusers(place, monkeypatch, settings, timesteps)
    kind = "plus" if "plus" in place[1].path else "plain"
    for final, seen in (plain(model, settings), by_engine(model, settings)):
        assert len(seen) == len(theirs) == steps
        for (sample, tokens), (their_sample, their_tokens) in zip(seen, theirs, strict=True):
            assert tokens is not None
            assert their_tokens is not None
            assert tokens.shape[1] == TOKENS[kind]
            torch.testing.assert_close(sample, their_sample, rtol=CLOSE, atol=CLOSE)
            torch.testing.assert_close(tokens, their_tokens, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)
        for (sample, _), latent in zip(seen[1:], left[:-1], strict=True):
            torch.testing.assert_close(sample, latent, rtol=CLOSE, atol=CLOSE)


def test_full_guidance_predicts_under_no_picture_as_diffusers_does(
    place: Place, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"guidance": Guidance.FULL, "guidance_scale": 3.0, "negative_prompt": "zebra"}
    settings = asked(2, **how)
    timesteps = [step.timestep for step in model.denoisers[""].schedule.steps(settings)]
    left, _ = by_diffusers(place, monkeypatch, settings, timesteps)
    for final, _ in (plain(model, settings), by_engine(model, settings)):
        torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


def test_a_scale_of_0_is_as_without_to_the_bit(model: DiffusionModel) -> None:
    without, idle = by_engine(model, asked(2, reference=NO_IMAGE)), by_engine(model, asked(2, scale=0.0))
    assert torch.equal(without[0], idle[0])
    assert [tokens for _, tokens in idle[1]] == [None, None]


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (91, 64), (9, 70)])
def test_an_encoder_sees_what_clips_own_processor_gives_it(size: tuple[int, int]) -> None:
    levels = pixels(2, *size)
    processor = CLIPImageProcessor(size=ENCODER_SIDE, crop_size=ENCODER_SIDE)
    theirs = processor(Image.fromarray(levels), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels_of(png(levels), ENCODER_SIDE), theirs, rtol=1e-5, atol=1e-5)
    assert np.ptp(theirs.numpy()) > 1.0


@pytest.mark.parametrize("size", [(1, 262_144), (262_144, 1), (3, 1000)])
def test_a_picture_much_longer_than_wide_takes_no_gigabytes(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled as it is, a file of 1 KiB took 39 GB."""
    levels = pixels(2, *size)
    resize = Image.Image.resize

    def bounded(image: Image.Image, size: tuple[int, int], *how: Any) -> Image.Image:
        assert size[0] * size[1] <= 8 * ENCODER_SIDE**2
        return resize(image, size, *how)

    monkeypatch.setattr(Image.Image, "resize", bounded)
    height, width = size
    top, left = max(0, height - 8 * width) // 2, max(0, width - 8 * height) // 2
    middle = levels[top : height - top, left : width - left]
    assert torch.equal(pixels_of(png(levels), ENCODER_SIDE), pixels_of(png(middle), ENCODER_SIDE))


@pytest.mark.parametrize("kind", TOKENS)
def test_a_unet_of_xl_predicts_as_diffusers_does(tmp_path: Path, kind: str) -> None:
    """Of transformers with several blocks, beside pooled text and sizes: call by call."""
    checkpoint = write_tiny_xl(tmp_path / "it")
    file = reference_file(tmp_path / "reference", checkpoint, kind)
    model = load_model(str(checkpoint), whole(), CPU, torch.float32, Additions(reference=file))
    assert isinstance(model, DiffusionModel)
    predicted: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
    model.denoisers[""].unet.register_forward_hook(
        lambda _, given, named, output: predicted.append((given, dict(named), output[0])), with_kwargs=True
    )
    latents = [by_engine(model, asked(1, **more))[0] for more in ({"reference": NO_IMAGE}, {})]
    assert rms(*latents) >= MOVES
    given, named, ours = predicted[-1]
    theirs = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    theirs._load_ip_adapter_weights([tensors_of(checkpoint, kind)], low_cpu_mem_usage=False)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.8]
    encoder = CLIPVisionModelWithProjection.from_pretrained(file.image_encoder)
    with torch.no_grad():
        seen = encoder(pixels_of(png(SHOWN), ENCODER_SIDE), output_hidden_states=True)
        embeds = seen.hidden_states[-2] if kind == "plus" else seen.image_embeds
        named["added_cond_kwargs"] = {**named["added_cond_kwargs"], "image_embeds": [embeds[None]]}
        expected = theirs(*given, **named)[0]
    torch.testing.assert_close(ours, expected, rtol=CLOSE, atol=CLOSE)
