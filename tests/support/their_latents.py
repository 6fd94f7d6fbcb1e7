"""What diffusers' img2img pipelines leave after each step."""

from __future__ import annotations

from typing import Any

from rearview.contract.settings import Settings
from torch import Tensor

__all__ = ["their_latents"]


def their_latents(pipeline: Any, image_HWC: Tensor, settings: Settings, **how: Any) -> list[Tensor]:
    """The latent after each step, in diffusers' own scale, and the final one."""
    left: list[Tensor] = []

    def note(_: object, step: int, timestep: object, values: dict[str, Tensor]) -> dict[str, Tensor]:
        left.append(values["latents"].clone())
        return values

    final: Tensor = pipeline(
        prompt=settings.prompt,
        image=image_HWC.permute(2, 0, 1)[None].float() / 255.0,
        output_type="latent",
        callback_on_step_end=note,
        **how,
    ).images
    return [*left[:-1], final]  # LCM's callback has noise in the last one, which is thrown away.
