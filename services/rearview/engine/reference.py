"""The plain path: one session, one frame, one step at a time. The oracle of the tests.

No rows, no batching, no pool, no spans. `engine.py` must give the same pictures; this file is checked
against diffusers' own img2img pipeline with `LCMScheduler` and the same noise. Guidance is written out
here as the method's authors define it, in terms of noise; the engine's is in terms of clean latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rearview.engine.memory.plain_bank import PlainBank
from rearview.engine.operators.decode import decode
from rearview.engine.operators.denoise import Denoiser
from rearview.engine.operators.encode import encode
from rearview.engine.sampling import StepCoefficients, noise
from rearview.engine.session import Guidance, Settings

__all__ = ["denoise_latent", "translate_frame"]


@torch.inference_mode()
def translate_frame(
    vae: Any,
    denoiser: Denoiser,
    image_HWC: Tensor,
    settings: Settings,
    ordinal: int,
    dtype: torch.dtype,
    bank: PlainBank | None = None,
) -> Tensor:
    """Translate one uint8 frame (H, W, 3); returns the same shape and type. Writes to `bank`."""
    z_1CHW = encode(vae, image_HWC[None], dtype)
    return decode(vae, denoise_latent(denoiser, z_1CHW, settings, ordinal, dtype, bank), dtype)[0]


def denoise_latent(
    denoiser: Denoiser,
    z_1CHW: Tensor,
    settings: Settings,
    ordinal: int,
    dtype: torch.dtype,
    bank: PlainBank | None = None,
) -> Tensor:
    """All denoising steps of one encoded frame (1, C, h, w); returns the clean latent."""
    embeds_1LD = denoiser.conditioning.embed_frame(settings, ordinal)
    clean = negative = z_1CHW
    for index, step in enumerate(denoiser.schedule.steps(settings)):
        epsilon = noise(settings, ordinal, index, tuple(clean.shape[1:])).to(clean)
        x = step.alpha * clean + step.beta * epsilon
        memory = None if bank is None else bank.view(settings, ordinal, index)
        output = _run_unet(denoiser, x, step, embeds_1LD, dtype, memory)
        if memory is not None:
            memory.commit()
        if settings.acting_guidance is Guidance.NONE:
            clean = denoiser.schedule.predict(x, output, [step])
            continue
        if settings.acting_guidance is Guidance.FULL or (
            settings.acting_guidance is Guidance.INITIALIZE and index == 0
        ):
            embeds = denoiser.conditioning.embed(settings.negative_prompt)
            away = _as_noise(denoiser, x, _run_unet(denoiser, x, step, embeds, dtype), step)
            negative = (x - step.beta * away) / step.alpha
        residual = (x - step.alpha * negative) / step.beta
        u = residual if settings.acting_guidance is Guidance.FULL else settings.delta * residual
        e = u + settings.guidance_scale * (_as_noise(denoiser, x, output, step) - u)
        clean = step.c_out * (x - step.beta * e) / step.alpha + step.c_skip * x
    return clean


def _run_unet(
    denoiser: Denoiser,
    x_1CHW: Tensor,
    step: StepCoefficients,
    embeds_1LD: Tensor,
    dtype: torch.dtype,
    memory: Any = None,
) -> Tensor:
    output: Tensor = denoiser.unet(
        x_1CHW.to(dtype),
        torch.tensor([step.timestep], device=x_1CHW.device),
        encoder_hidden_states=embeds_1LD,
        return_dict=False,
        **({} if memory is None else {"cross_attention_kwargs": {"memory": memory}}),
    )[0]
    return output.to(x_1CHW.dtype)


def _as_noise(denoiser: Denoiser, x: Tensor, output: Tensor, step: StepCoefficients) -> Tensor:
    """The noise that a UNet output says is in x."""
    kind = denoiser.schedule.prediction_type
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return step.alpha * output + step.beta * x
    return (x - step.alpha * output) / step.beta
