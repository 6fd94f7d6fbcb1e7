"""The plain path: one session, one frame, one step at a time. The oracle of the tests.

No rows, no batching, no pool, no spans. `engine.py` must give the same pictures; this file is checked
against diffusers' own img2img pipeline with `LCMScheduler` and the same noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rearview.engine.memory.plain_bank import PlainBank
from rearview.engine.operators.decode import decode
from rearview.engine.operators.denoise import Denoiser
from rearview.engine.operators.encode import encode
from rearview.engine.sampling import noise
from rearview.engine.session import Settings

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
    embeds_1LD = denoiser.conditioning.embed(settings.prompt)
    clean = z_1CHW
    for index, step in enumerate(denoiser.schedule.steps(settings)):
        epsilon = noise(settings, ordinal, index, tuple(clean.shape[1:])).to(clean)
        x = step.alpha * clean + step.beta * epsilon
        timestep = torch.tensor([step.timestep], device=x.device)
        memory = None if bank is None else bank.view(settings, ordinal, index)
        output = denoiser.unet(
            x.to(dtype),
            timestep,
            encoder_hidden_states=embeds_1LD,
            return_dict=False,
            **({} if memory is None else {"cross_attention_kwargs": {"memory": memory}}),
        )[0]
        if memory is not None:
            memory.commit()
        clean = denoiser.schedule.predict(x, output.to(x.dtype), [step])
    return clean
