"""Pixel losses shared by the autoencoder and the joint stage."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SCALES = (1, 2, 4)


def gradient_l1(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """L1 between the horizontal and vertical differences of two pictures."""
    across = (first_BCHW.diff(dim=3) - second_BCHW.diff(dim=3)).abs().mean()
    down = (first_BCHW.diff(dim=2) - second_BCHW.diff(dim=2)).abs().mean()
    return across + down


def picture_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """L1 plus L1 and gradient L1 on three scales: edges count more than in plain L1."""
    loss = (output_BCHW - target_BCHW).abs().mean()
    for scale in _SCALES:
        small, goal = (F.avg_pool2d(x, scale) if scale > 1 else x for x in (output_BCHW, target_BCHW))
        loss = loss + 0.5 * (small - goal).abs().mean() + 0.7 * gradient_l1(small, goal)
    return loss


def colour_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Colour of 8x8 means, chroma counted extra: keeps the start of training off the grey plateau."""
    small, goal = F.avg_pool2d(output_BCHW, 8), F.avg_pool2d(target_BCHW, 8)
    chroma = (small - small.mean(1, keepdim=True)) - (goal - goal.mean(1, keepdim=True))
    return (small - goal).abs().mean() + 1.5 * chroma.abs().mean()


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1."""
    error = ((output.clamp(-1, 1) - target) / 2).square().mean()
    return float(-10 * torch.log10(error.clamp_min(1e-10)))


def contrast_loss(output_BCHW: Tensor, target_BCHW: Tensor, *, size: int = 8) -> Tensor:
    """Difference of the mean gradient magnitudes of small neighbourhoods: blur costs, a shift does not."""
    loss = output_BCHW.new_zeros(())
    for dim in (2, 3):
        own, goal = (F.avg_pool2d(x.diff(dim=dim).abs(), size) for x in (output_BCHW, target_BCHW))
        loss = loss + (own - goal).abs().mean()
    return loss
