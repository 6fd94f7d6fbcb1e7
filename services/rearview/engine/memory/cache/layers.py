"""Which layers of a UNet a temporal cache remembers, read from the UNet's own structure.

Shape legend: N pixels, H heads, L frames, D channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["CacheLayer", "CacheLayout", "read_cache_layout"]


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """One temporal attention layer."""

    name: str
    """Path of its module in the UNet: the key of exports."""
    level: int
    """How often the latent was halved before it."""
    channels: int
    heads: int

    def pixels(self, height: int, width: int) -> int:
        """N for a latent of this size."""
        return (height >> self.level) * (width >> self.level)

    def shape(self, pixels: int, frames: int) -> tuple[int, int, int, int]:
        """(N, H, L, D)."""
        return pixels, self.heads, frames, self.channels // self.heads


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """All temporal layers of a UNet, by number."""

    layers: tuple[CacheLayer, ...]
    size_multiple: int
    """Latent cells of which both sides of a frame are a multiple."""
    max_frames: int
    """Positions that the motion modules know."""

    def bytes_per_step(self, height: int, width: int, frames: int, dtype: torch.dtype) -> int:
        """Bytes of one (session, step) for latents of this size: keys and values, 2 N L C per layer."""
        elements = sum(2 * layer.pixels(height, width) * frames * layer.channels for layer in self.layers)
        return elements * dtype.itemsize


def read_cache_layout(unet: Any) -> CacheLayout:
    """The temporal layers of a `StreamingUNet`."""
    layers = tuple(
        CacheLayer(name, level, layer.channels, layer.heads) for name, level, layer in unet.temporal_layers()
    )
    return CacheLayout(layers, unet.size_multiple, unet.max_frames)
