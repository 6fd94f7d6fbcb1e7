"""ControlNets of Stable Diffusion XL against diffusers' own pipeline, on the same noise and control pictures.

Compared are what the UNet and the ControlNets are given in every step (tokens, pooled text and sizes of each
prediction), the residuals, and the latent after each step (1e-4). Nothing that starts at zero is zero here,
and the controls are first seen to move the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    MultiControlNetModel,
    StableDiffusionXLControlNetImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.controlnet import pipeline_controlnet_sd_xl_img2img as pipeline_module
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral_module
from rearview.contract.chain import Span, chain
from rearview.contract.controls import ControlPicture, WeightedControl
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Clip
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions, ControlFile
from rearview.errors import ConfigError
from support.frames import content
from support.parity import CLOSE, MOVES, hand_noise, latent_of, noting_latents
from support.tiny import random_frames, session
from support.tiny_control import filled, write_tiny_control
from support.tiny_turbo import write_tiny_turbo
from support.tiny_xl import XL_SCHEDULER, XL_TURBO_SCHEDULER, write_tiny_xl
from support.toy import player
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
STEPS = 3
SPAN = Span("latent", chain(4)[:-1])
SCHEDULERS: dict[str, tuple[dict[str, Any], Any]] = {
    "base": (XL_SCHEDULER, EulerDiscreteScheduler),
    "turbo": (XL_TURBO_SCHEDULER, EulerAncestralDiscreteScheduler),
}
CONTROLS = (WeightedControl("pose", 0.7), WeightedControl("small", 1.1))
GUIDED = {"guidance": Guidance.FULL, "guidance_scale": 3.0, "negative_prompt": "fog"}
Case = tuple[str, Path, Mapping[str, Path], DiffusionModel]


def write_small_control(folder: Path, checkpoint: Path) -> Path:
    """As the small ones that are published: no attention anywhere."""
    like = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet"))
    torch.manual_seed(9)
    blocks = ["DownBlock2D"] * len(like.config.down_block_types)
    config = {**like.config, "down_block_types": blocks, "mid_block_type": "UNetMidBlock2D"}
    network = ControlNetModel.from_config(config)
    filled(network).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(SCHEDULERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Name, checkpoint, two ControlNets for it, and our model with both."""
    folder = tmp_path_factory.mktemp("xl-controls")
    checkpoint = write_tiny_xl(folder / "xl", **SCHEDULERS[request.param][0])
    controls = {
        "pose": write_tiny_control(folder / "pose", checkpoint),
        "small": write_small_control(folder / "small", checkpoint),
    }
    files = {name: ControlFile(str(path), ControlPicture.SENT) for name, path in controls.items()}
    model = load_model(str(checkpoint), SPAN, CPU, torch.float32, Additions(controls=files))
    assert isinstance(model, DiffusionModel)
    return request.param, checkpoint, controls, model


def pipeline_of(case: Case) -> Any:
    """Diffusers' own, with networks of its own."""
    name, folder, controls, _ = case
    config, kind = SCHEDULERS[name]
    made = StableDiffusionXLControlNetImg2ImgPipeline(
        vae=AutoencoderTiny.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer_2"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        controlnet=MultiControlNetModel(
            [ControlNetModel.from_pretrained(path) for path in controls.values()]
        ),
        scheduler=kind.from_config(config),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


Call = Mapping[str, Tensor]


@contextmanager
def watched(*networks: Any) -> Iterator[list[list[Call]]]:
    """Of each network, what it is given call by call, by name."""
    seen: list[list[Call]] = [[] for _ in networks]

    def noting(calls: list[Call]) -> Callable[..., None]:
        def note(_: object, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            sample, timestep = given or (named["sample"], named["timestep"])
            found = {"sample": sample, "timestep": torch.as_tensor(timestep).flatten()[:1].float()}
            found |= named["added_cond_kwargs"] | {"tokens": named["encoder_hidden_states"]}
            for at, down in enumerate(named.get("down_block_additional_residuals") or ()):
                found[f"down {at}"] = down
            if named.get("mid_block_additional_residual") is not None:
                found["mid"] = named["mid_block_additional_residual"]
            calls.append({name: each.detach().clone() for name, each in found.items()})

        return note

    with ExitStack() as stack:
        for network, calls in zip(networks, seen, strict=True):
            handle = network.register_forward_pre_hook(noting(calls), with_kwargs=True)
            stack.callback(handle.remove)
        yield seen


def frame() -> tuple[Tensor, Mapping[str, Tensor]]:
    """An image, and what is sent for its controls."""
    image, pose, small = random_frames(3, seed=3)
    return image, {"control.pose": pose, "control.small": small}


def pixels(image_HWC: Tensor) -> Tensor:
    return image_HWC.permute(2, 0, 1)[None].float() / 255.0


def by_diffusers(
    case: Case, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> tuple[list[Tensor], list[list[Call]]]:
    """The latent after each step in diffusers' scale; what its UNet and both ControlNets saw."""
    pipeline, (image, sent) = pipeline_of(case), frame()
    hand_noise(monkeypatch, [pipeline_module, ancestral_module], settings)
    left: list[Tensor] = []
    guided = settings.guidance is Guidance.FULL
    with watched(pipeline.unet, *pipeline.controlnet.nets) as seen:
        pipeline(
            prompt=settings.prompt,
            negative_prompt=settings.negative_prompt if guided else None,
            image=pixels(image),
            control_image=[pixels(each) for each in sent.values()],
            controlnet_conditioning_scale=[one.weight for one in settings.acting_controls],
            num_inference_steps=5,
            strength=0.6,
            guidance_scale=settings.guidance_scale if guided else 1.0,
            output_type="latent",
            callback_on_step_end=noting_latents(left),
        )
    return left, seen


def asked(case: Case, controls: tuple[WeightedControl, ...] = CONTROLS, **more: Any) -> Settings:
    """Three of diffusers' five steps."""
    name, *_ = case
    at = (29, 39, 49) if name == "base" else (20, 30, 40)
    rule = NoiseRule.FRESH if name == "turbo" else NoiseRule.FIXED
    return Settings("a boat", 0.6, STEPS, 7, rule, timestep_indices=at, controls=controls, **more)


def plain(case: Case, settings: Settings) -> tuple[Tensor, list[list[Call]]]:
    """The clean latent of the plain path, and what its networks saw."""
    model, (image, sent) = case[3], frame()
    denoiser = model.denoisers[""]
    shown = {name.removeprefix("control."): each for name, each in sent.items()}
    nets = [branch.network for _, branch in sorted(denoiser.controls.branches.items())]
    with torch.inference_mode(), watched(denoiser.unet, *nets) as seen:
        z = encode(model.vae, image[None], torch.float32)
        return denoise_latent(denoiser, z, settings, 0, torch.float32, shown=shown), seen


def by_engine(case: Case, settings: Settings) -> tuple[Tensor, list[list[Call]]]:
    """The same of an engine."""
    model, (image, sent) = case[3], frame()
    denoiser = model.denoisers[""]
    nets = [branch.network for _, branch in sorted(denoiser.controls.branches.items())]
    with watched(denoiser.unet, *nets) as seen:
        return latent_of(model, SPAN, settings, {"picture": image, **sent}), seen


def test_controls_move_the_picture(case: Case) -> None:
    """Each by itself, in latents."""
    without, *_ = plain(case, asked(case, ()))
    for one in CONTROLS:
        under, *_ = plain(case, asked(case, (one,)))
        assert (without - under).square().mean().sqrt() >= MOVES, one.name


def test_every_input_and_latent_equals_diffusers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked(case)
    left, theirs = by_diffusers(case, monkeypatch, settings)
    steps = case[3].denoisers[""].schedule.steps(settings)
    for final, ours in (plain(case, settings), by_engine(case, settings)):
        for mine, its in zip(ours, theirs, strict=True):
            assert len(mine) == len(its) == STEPS
            for one, other in zip(mine, its, strict=True):
                assert one.keys() == other.keys() >= {"text_embeds", "time_ids", "tokens"}
                for key, value in one.items():
                    torch.testing.assert_close(value, other[key], rtol=CLOSE, atol=CLOSE, msg=key)
        unet, *_ = ours
        for call, latent, step in zip(unet[1:], left[:-1], steps[1:], strict=True):
            torch.testing.assert_close(call["sample"] / step.alpha, latent, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


def test_full_guidance_controls_both_predictions(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ControlNet is given the pooled text of the prediction that it is for."""
    settings = asked(case, **GUIDED)
    left, _ = by_diffusers(case, monkeypatch, settings)
    for final, _ in (plain(case, settings), by_engine(case, settings)):
        torch.testing.assert_close(final, left[-1], rtol=CLOSE, atol=CLOSE)


def test_rows_with_other_prompts_and_without_controls_share_forwards(case: Case) -> None:
    """The pooled text that a ControlNet gets is that of its row."""
    model, (image, sent) = case[3], frame()
    asking = {
        "a": asked(case),
        "b": replace(asked(case, CONTROLS[:1]), prompt="fog"),
        "c": replace(asked(case, ()), prompt="a tree"),
    }

    def played(*names: str) -> dict[str, Tensor]:
        engine = Engine(SPAN, model, Memoryless(4), Scheduler(CostTable(), 4), clock=lambda: 0.0)
        specs = [session(name, asking[name], max_steps=4) for name in names]
        found = player(engine).play(*(Clip(spec, [{"picture": image, **sent}]) for spec in specs))
        left = {name: content(frames[0]) for name, frames in found.items()}
        return {name: each for name, each in left.items() if each is not None}

    together = played(*asking)
    for name, latent in together.items():
        torch.testing.assert_close(latent, played(name)[name], rtol=1e-5, atol=1e-5)


def test_what_is_of_another_base_model_is_refused(tmp_path: Path, case: Case) -> None:
    """Stable Diffusion 2.1's under XL, and XL's under 2.1."""
    other = write_tiny_turbo(tmp_path / "other")
    cases = (
        (case[1], write_tiny_control(tmp_path / "of-other", other), "cross_attention_dim is 1024"),
        (other, case[2]["pose"], "cross_attention_dim is 56"),
    )
    for checkpoint, control, reason in cases:
        files = {"pose": ControlFile(str(control), ControlPicture.SENT)}
        with pytest.raises(ConfigError, match=rf"model\.controls\.pose: .*{reason}"):
            load_model(str(checkpoint), SPAN, CPU, torch.float32, Additions(controls=files))
