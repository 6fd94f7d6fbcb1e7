"""Depth maps of frames: a DPT network, and the picture that a map becomes for the VAE.

A frame is brought to the network's own size (its aspect ratio is ignored), and the relative inverse depth
that comes back is scaled by the session's running range (`memory/depth/pool.py`), not by the frame's own
(methods 3.9).
Shape legend: B frames, H W of the frame, S T of the network's input, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DepthEstimator", "depth_picture", "range_of"]

MIN_SPAN = 1e-6
"""A range narrower than this is that of a constant map, which becomes 0 instead of not a number."""


class DepthEstimator:
    """A DPTForDepthEstimation at one input size. Stateless."""

    def __init__(self, network: Any, size: tuple[int, int], dtype: torch.dtype) -> None:
        """`size`: height and width of the network's input, pixels."""
        self.network, self._dtype = network, dtype
        self.size = size

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Relative inverse depth (B, S, T) in float32 (float64 for such networks) of frames (B, 3, H, W)
        in [-1, 1]. Greater is nearer. What is not a number, which half precision can make, becomes 0.
        """
        resized_BCST = F.interpolate(pixels_BCHW.to(self._dtype), self.size, mode="bilinear")
        depth: Tensor = self.network(pixel_values=resized_BCST).predicted_depth
        return depth.to(torch.promote_types(depth.dtype, torch.float32)).nan_to_num(0.0, 0.0, 0.0)


def range_of(depth_BST: Tensor) -> Tensor:
    """Least and greatest depth of each map: (B, 2)."""
    return torch.stack(depth_BST.flatten(1).aminmax(dim=1), dim=1)


def depth_picture(depth_BST: Tensor, range_B2: Tensor, height: int, width: int) -> Tensor:
    """Maps as grey pictures (B, 3, H, W) in [-1, 1]: the low end of the range is -1, the high end 1."""
    low_B11, high_B11 = range_B2[:, :1, None], range_B2[:, 1:, None]
    grey_BST = ((depth_BST - low_B11) / (high_B11 - low_B11).clamp(min=MIN_SPAN)).clamp(0.0, 1.0)
    grey_B1HW = F.interpolate((2.0 * grey_BST - 1.0)[:, None], (height, width), mode="bilinear")
    return grey_B1HW.expand(-1, 3, -1, -1)
