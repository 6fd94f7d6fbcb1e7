"""The plain path: one session, one frame, one step at a time. Read this first: it is the oracle of the tests.

No rows, batches, pools or spans. `engine.py` must give the same pictures; this file is checked against
diffusers' own img2img pipelines (`LCMScheduler`, Euler's) with the same noise. Latents are (1, C, h, w).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rearview.contract.settings import Settings
from rearview.engine.networks.decode import decode
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.encode import encode
from rearview.engine.networks.sampling import StepCoefficients
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.control import Shown, steered
from rearview.engine.reference.guidance import clean_of, guided, predicts_negative

__all__ = ["denoise_latent", "translate_frame"]


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
    """All steps of an encoded frame: its clean latent. Reads and writes `bank`. `shown`: to its controls."""
    unet = steered(denoiser, settings, shown or {})
    more = {**denoiser.embedded_scales([settings.guidance_scale]), **denoiser.adapter_rows([settings])}
    seen, unseen = (denoiser.references.inputs([settings], [away], z) for away in (False, True))
    prompt = denoiser.conditioning.embed_frame(settings, ordinal)
    clean = away = x = z
    for index, step in enumerate(denoiser.schedule.steps(settings)):
        x = denoiser.schedule.noisy(clean[0], x[0], settings, ordinal, index)[None]
        view = None if bank is None else bank.view(settings, ordinal, index)
        past = {} if view is None else {"cross_attention_kwargs": {"memory": view}}
        output = _predict(unet, x, step, prompt, dtype, **more, **seen, **past)
        if view is not None:
            view.commit()
        if predicts_negative(settings, index):
            negative = denoiser.conditioning.embed(settings.negative_prompt, settings.acting_adapters)
            away = clean_of(denoiser, x, _predict(unet, x, step, negative, dtype, **more, **unseen), step)
        clean = guided(denoiser, settings, step, x, output, away)
    return clean


def _predict(
    unet: Any, x: Tensor, step: StepCoefficients, text: Tensor, dtype: torch.dtype, **more: Any
) -> Tensor:
    at = torch.tensor([step.timestep], device=x.device)
    output: Tensor = unet(x.to(dtype), at, encoder_hidden_states=text, return_dict=False, **more)[0]
    return output.to(x.dtype)
