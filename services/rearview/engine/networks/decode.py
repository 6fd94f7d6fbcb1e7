"""Latents to frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rearview.engine.devices import memory_format
from rearview.engine.networks.encode import dtype_of

__all__ = ["decode", "decode_levels", "pictures_of"]


def decode(vae: Any, latents_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Decode clean, scaled latents (B, C, h, w) to uint8 frames (B, H, W, 3).

    A value that is not a number becomes grey rather than noise of the platform's choosing.
    """
    return pictures_of(decode_levels(vae, latents_BCHW, dtype))


def decode_levels(vae: Any, latents_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """What `pictures_of` makes pictures of: (B, 3, H, W) float32, levels of 255."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = latents_BCHW / vae.config.scaling_factor + shift
    latents = latents.to(dtype_of(vae, dtype))
    images: Tensor = vae.decode(
        latents.contiguous(memory_format=memory_format(latents.device))
    ).sample.float()
    return images.add_(1.0).mul_(127.5)


def pictures_of(levels_BCHW: Tensor) -> Tensor:
    """uint8 frames (B, H, W, 3) of what was decoded, which is changed."""
    levels_BCHW.nan_to_num_(127.5).round_().clamp_(0, 255)
    return levels_BCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
