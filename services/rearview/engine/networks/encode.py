"""Frames to latents, and beside them their depth maps' latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rearview.engine.devices import memory_format
from rearview.engine.memory.depth.pool import next_range
from rearview.engine.networks.depth import DepthEstimator, depth_picture, range_of

__all__ = ["dtype_of", "encode", "encode_with_depth"]


def dtype_of(vae: Any, dtype: torch.dtype) -> torch.dtype:
    """In which type an autoencoder computes: in a wider one than the other networks' `dtype` where it would
    overflow in that (`force_upcast`).
    """
    return getattr(vae, "dtype", None) or dtype


def encode(vae: Any, images_BHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """Encode uint8 frames (B, H, W, 3) to latents (B, C, h, w), float32 and scaled for diffusion.

    A VAE with a posterior gives its mode, so that no random number enters the path.
    """
    dtype = dtype_of(vae, dtype)
    return _latents(vae, _pixels(images_BHWC, dtype), dtype)


def encode_with_depth(
    vae: Any, estimator: DepthEstimator, images_BHWC: Tensor, range_B2: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode frames and their depth: latents of the frames and of their depth maps, (B, C, h, w) each.

    `range_B2`: each session's running range of depth before its frame. Also returns that after it, by
    which the map is scaled. Changes nothing.
    """
    pixels_BCHW = _pixels(images_BHWC, dtype)
    depth_BST = estimator(pixels_BCHW)
    ranges_B2 = next_range(range_B2.to(depth_BST), range_of(depth_BST))
    depth_BCHW = depth_picture(depth_BST, ranges_B2, *images_BHWC.shape[1:3]).to(dtype)
    both = _latents(vae, torch.cat([pixels_BCHW, depth_BCHW]), dtype)
    latent_BCHW, depth_latent_BCHW = (part.contiguous() for part in both.chunk(2))
    return latent_BCHW, depth_latent_BCHW, ranges_B2


def _pixels(images_BHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 3, H, W) in [-1, 1]. Pixels are mapped once, here and nowhere else."""
    return images_BHWC.permute(0, 3, 1, 2).to(dtype).mul_(2.0 / 255.0).sub_(1.0)


def _latents(vae: Any, pixels_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    encoded = vae.encode(pixels_BCHW.contiguous(memory_format=memory_format(pixels_BCHW.device)))
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    result: Tensor = (latents.to(_state_dtype(dtype)) - shift) * vae.config.scaling_factor
    return result


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Latents travel in float32 whatever the networks compute in (float64 in exactness tests)."""
    return torch.float64 if dtype is torch.float64 else torch.float32
