"""The scale of guidance as an input of the UNet, for weights that were distilled from guided ones (LCM)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["embed_scales"]


def embed_scales(scales: Sequence[float], channels: int) -> Tensor:
    """Sines and cosines of w = scale - 1, one row for each, (B, channels) float32 on the CPU.

    In float32 as diffusers computes it: angles are thousands, and networks were trained with its rounding.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    w = (torch.tensor(scales, dtype=torch.float32) - 1.0) * 1000.0
    angles = w[:, None] * frequencies[None]
    embedded = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedded, (0, channels % 2))
