"""Where each pixel of a frame was in the frame before, and whether it could be seen there.

A motion is given in the coordinates of the *later* frame, mask included: that is where pictures are
compared. Coordinates are those of pixel centres, x before y.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Affine", "Motion", "affine_motion", "estimated_motion", "layered_motion", "scaled", "warp"]

Affine = NDArray[np.float64]
"""(2, 3): maps pixels (x, y) of the later frame to those of the earlier one."""

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 0.01, 0.5
"""Of the forward-backward check: share of the squared lengths, and squared pixels."""
INSIDE_TOLERANCE = 1e-3
"""Pixels by which a place may leave the frame through rounding."""


@dataclass(frozen=True)
class Motion:
    """From one frame to the next."""

    backward: Tensor
    """(2, H, W), pixels: what is at p in the later frame was at p + backward[p] in the earlier one."""
    visible: Tensor
    """(H, W) bool: p's place lies inside the earlier frame and nothing hid it there."""


def warp(field_CHW: Tensor, backward: Tensor) -> Tensor:
    """The earlier frame's field, looked up bilinearly where each pixel of the later one was. (C, H, W).

    Outside the frame its border is repeated. `cv2.remap` rounds places to 1/32 pixel, which is no smaller
    than the errors that are measured here; this does not.
    """
    height, width = backward.shape[-2:]
    place = _places(backward)
    size = torch.tensor([width - 1, height - 1], dtype=place.dtype).clamp(min=1)
    grid = place.permute(1, 2, 0) * 2 / size - 1
    found = torch.nn.functional.grid_sample(
        field_CHW[None].to(grid.dtype), grid[None], padding_mode="border", align_corners=True
    )
    return found[0].to(torch.float32)


def affine_motion(affine: Affine, height: int, width: int) -> Motion:
    """A whole frame that moves as one; hidden is only what comes in over the border."""
    backward = displacement(affine, height, width)
    return Motion(backward, inside(backward))


def layered_motion(
    background: Affine, foreground: Affine, alpha_before: Tensor, alpha_after: Tensor
) -> Motion:
    """An object before a ground, each with its own motion; `alpha` (H, W) is the object's share of a pixel.

    Pixels that mix both layers in either frame are not visible: no single motion is right for them.
    """
    height, width = alpha_after.shape
    ground, figure = (displacement(affine, height, width) for affine in (background, foreground))
    is_figure, is_ground = alpha_after >= 1.0, alpha_after <= 0.0
    before = alpha_before[None]
    was_figure = warp(before, figure)[0] >= 1.0 - 1e-6
    was_ground = warp(before, ground)[0] <= 1e-6
    backward = torch.where(is_figure, figure, ground)
    visible = (is_figure & was_figure) | (is_ground & was_ground)
    return Motion(backward, visible & inside(backward))


def estimated_motion(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Motion:
    """Of two pictures (H, W, 3) uint8 of which nothing is known: DIS optical flow both ways.

    A pixel is visible iff going back and forth leads to where it started (Sundaram et al. 2010:
    |b + f|² < 0.01 (|b|² + |f|²) + 0.5, f looked up where b leads).
    """
    first, second = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (before, after))
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    backward, forward = (
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(estimator.calc(*pair, None), 2, 0)))
        for pair in ((second, first), (first, second))
    )
    return Motion(backward, inside(backward) & returns(backward, forward))


def returns(backward: Tensor, forward: Tensor) -> Tensor:
    """(H, W) bool: whether the earlier frame's `forward` leads back from where `backward` leads."""
    there = warp(forward, backward)
    lengths = backward.square().sum(0) + there.square().sum(0)
    gap = (backward + there).square().sum(0)
    return gap < RELATIVE_TOLERANCE * lengths + ABSOLUTE_TOLERANCE


def displacement(affine: Affine, height: int, width: int) -> Tensor:
    """(2, H, W) of an affine map."""
    matrix = torch.from_numpy(np.asarray(affine, dtype=np.float64))
    own = _pixels(height, width, torch.float64)
    place = torch.einsum("ij,jhw->ihw", matrix[:, :2], own) + matrix[:, 2, None, None]
    return (place - own).to(torch.float32)


def inside(backward: Tensor) -> Tensor:
    """(H, W) bool: places from the first pixel centre to the last, where a lookup invents nothing."""
    place = _places(backward)
    last = torch.tensor([backward.shape[-1] - 1, backward.shape[-2] - 1], dtype=place.dtype)[:, None, None]
    return ((place >= -INSIDE_TOLERANCE) & (place <= last + INSIDE_TOLERANCE)).all(0)


def scaled(affine: Affine, factor: float) -> Affine:
    """The same map of a picture drawn `factor` times as large."""
    centre = (factor - 1) / 2
    to_small = np.array([[1 / factor, 0, -centre / factor], [0, 1 / factor, -centre / factor], [0, 0, 1]])
    moved = np.linalg.inv(to_small) @ np.vstack([affine, [0, 0, 1]]) @ to_small
    return np.asarray(moved[:2], dtype=np.float64)


def _places(backward: Tensor) -> Tensor:
    height, width = backward.shape[-2:]
    return _pixels(height, width, torch.float64) + backward.to(torch.float64)


def _pixels(height: int, width: int, dtype: torch.dtype) -> Tensor:
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype), indexing="ij"
    )
    return torch.stack([columns, rows])
