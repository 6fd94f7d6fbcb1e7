"""Frames to latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["encode"]


def encode(vae: Any, images_BHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """Encode uint8 frames (B, H, W, 3) to latents (B, C, h, w), float32 and scaled for diffusion.

    Pixels are mapped to [-1, 1] once, here and nowhere else. A VAE with a posterior gives its mode, so
    that no random number enters the path.
    """
    pixels = images_BHWC.permute(0, 3, 1, 2).to(dtype).mul_(2.0 / 255.0).sub_(1.0)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    encoded = vae.encode(pixels)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    result: Tensor = (latents.to(_state_dtype(dtype)) - shift) * vae.config.scaling_factor
    return result


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Latents travel in float32 whatever the networks compute in (float64 in exactness tests)."""
    return torch.float64 if dtype is torch.float64 else torch.float32
