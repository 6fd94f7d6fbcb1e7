"""Pixel losses shared by the autoencoder and the joint stage."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

_SCALES = (1, 2, 4)
_LUMA = (0.299, 0.587, 0.114)
_DIRECTIONS = 4
_WAVELENGTH, _REACH = 8.0, 8  # pixels; of the lines that are looked for, and half a kernel's side
_FAINT = 0.02  # strength, of a picture in -1..1, below which a line is none


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


def mark_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Difference of how strong lines of each direction are around a place, some 8 and some 16 pixels apart.

    A stroke that was blurred away costs, and so does one of another direction; one that lies a little aside
    does not. Pixel losses do the opposite, and make grey of strokes that are hard to place.
    """
    loss = output_BCHW.new_zeros(())
    for scale in (1, 2):
        own, goal = (_line_strength(F.avg_pool2d(x, scale)) for x in (output_BCHW, target_BCHW))
        loss = loss + (own - goal).abs().mean()
    return loss


def _line_strength(picture_BCHW: Tensor) -> Tensor:
    """(B, direction, H / 2, W / 2): amplitude of a wave of light and dark, whatever its phase."""
    tone = torch.einsum("c,bchw->bhw", picture_BCHW.new_tensor(_LUMA), picture_BCHW)[:, None]
    padded = F.pad(tone, [_REACH] * 4, mode="reflect")
    both = F.conv2d(padded, _wavelets().to(tone), stride=2)
    even, odd = both.chunk(2, dim=1)
    return (even.square() + odd.square() + _FAINT**2).sqrt()


@cache
def _wavelets() -> Tensor:
    """Even, then odd kernels (2 * direction, 1, side, side) that answer a wave with its amplitude."""
    place = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
    down, across = torch.meshgrid(place, place, indexing="ij")
    window = torch.exp(-(down.square() + across.square()) / (2 * (_WAVELENGTH / 2) ** 2))
    window = 2 * window / window.sum()
    angles = [math.pi * index / _DIRECTIONS for index in range(_DIRECTIONS)]
    phases = [2 * math.pi / _WAVELENGTH * (across * math.cos(a) + down * math.sin(a)) for a in angles]
    even = torch.stack([window * phase.cos() for phase in phases])
    even = even - window * even.sum(dim=(1, 2), keepdim=True) / window.sum()
    odd = torch.stack([window * phase.sin() for phase in phases])
    return torch.cat([even, odd])[:, None]
