"""The plain path: one session, one frame, one step at a time. Read this first: it is the oracle of the tests.

No rows, batches, pools or spans. `engine.py` must give the same pictures; this file is checked against
diffusers' own img2img pipelines (`LCMScheduler`, `EulerDiscreteScheduler`) with the same noise. Guidance is
in terms of noise, as the method's authors define it; the engine's is in terms of clean latents. Latents are
(1, C, h, w).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rearview.contract.settings import Guidance, Settings
from rearview.engine.networks.decode import decode
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.encode import encode
from rearview.engine.networks.sampling import StepCoefficients
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.control import Shown, added

__all__ = ["clean_of", "denoise_latent", "guided", "predicts_negative", "translate_frame"]

Look = tuple[Settings, Shown]


@torch.inference_mode()
def translate_frame(
    vae: Any, denoiser: Denoiser, image_HWC: Tensor, settings: Settings, ordinal: int, dtype: torch.dtype
) -> Tensor:
    """Translate one uint8 frame (H, W, 3); returns the same shape and type."""
    z = encode(vae, image_HWC[None], dtype)
    return decode(vae, denoise_latent(denoiser, z, settings, ordinal, dtype), dtype)[0]


def denoise_latent(
    denoiser: Denoiser,
    z: Tensor,
    settings: Settings,
    ordinal: int,
    dtype: torch.dtype,
    bank: PlainBank | None = None,
    shown: Shown | None = None,
) -> Tensor:
    """All denoising steps of one encoded frame; returns the clean latent. Reads and writes `bank`. `shown`:
    what the acting controls of `settings` are shown.
    """
    prompt = denoiser.conditioning.embed_frame(settings, ordinal)
    look = settings, shown or {}
    clean = away = x = z
    for index, step in enumerate(denoiser.schedule.steps(settings)):
        x = denoiser.schedule.noisy(clean[0], x[0], settings, ordinal, index)[None]
        view = None if bank is None else bank.view(settings, ordinal, index)
        past = {} if view is None else {"cross_attention_kwargs": {"memory": view}}
        output = _predict(denoiser, look, x, step, prompt, dtype, **past)
        if view is not None:
            view.commit()
        if predicts_negative(settings, index):
            negative = denoiser.conditioning.embed(settings.negative_prompt, settings.acting_adapters)
            away = clean_of(denoiser, x, _predict(denoiser, look, x, step, negative, dtype), step)
        clean = guided(denoiser, settings, step, x, output, away)
    return clean


def _predict(
    denoiser: Denoiser,
    look: Look,
    x: Tensor,
    step: StepCoefficients,
    text: Tensor,
    dtype: torch.dtype,
    **past: Any,
) -> Tensor:
    (settings, shown), at = look, torch.tensor([step.timestep], device=x.device)
    given = {
        **denoiser.embedded_scales([settings.guidance_scale]),
        **denoiser.adapter_rows([settings]),
        **past,
    }
    given |= added(denoiser, settings, shown, x.to(dtype), step.timestep, text)
    output: Tensor = denoiser.unet(x.to(dtype), at, encoder_hidden_states=text, return_dict=False, **given)[0]
    return output.to(x.dtype)


def predicts_negative(settings: Settings, index: int) -> bool:
    """Whether the UNet also predicts under the negative prompt in this step."""
    kind = settings.acting_guidance
    return kind is Guidance.FULL or (kind is Guidance.INITIALIZE and index == 0)


def guided(
    denoiser: Denoiser, settings: Settings, step: StepCoefficients, x: Tensor, output: Tensor, away: Tensor
) -> Tensor:
    """The clean latent that a UNet output leads to; if guidance acts, away from the clean latent `away`."""
    if settings.acting_guidance is Guidance.NONE:
        return denoiser.schedule.predict(x, output, [step])
    u = (x - step.alpha * away) / step.beta
    if settings.acting_guidance is not Guidance.FULL:
        u = settings.delta * u
    e = u + settings.guidance_scale * (_as_noise(denoiser, x, output, step) - u)
    clean: Tensor = step.c_out * (x - step.beta * e) / step.alpha + step.c_skip * x
    return clean


def clean_of(denoiser: Denoiser, x: Tensor, output: Tensor, step: StepCoefficients) -> Tensor:
    """The clean latent that a UNet output says is in x."""
    return (x - step.beta * _as_noise(denoiser, x, output, step)) / step.alpha


def _as_noise(denoiser: Denoiser, x: Tensor, output: Tensor, step: StepCoefficients) -> Tensor:
    if denoiser.schedule.prediction_type == "epsilon":
        return output
    if denoiser.schedule.prediction_type == "v_prediction":
        return step.alpha * output + step.beta * x
    return (x - step.alpha * output) / step.beta
