"""What a picture looks like, as a row of numbers: colours, palette by brightness, lines, tiles.

Chosen to tell painting styles apart whatever is painted, and to hold for pictures a little blurred; the
numbers mean nothing else. Plain statistics learn from a few hundred scenes what a network needs far more for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["describe"]

_LUMA = torch.tensor([0.299, 0.587, 0.114])
_LEVELS = (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
_OPPONENTS = (-0.3, -0.15, -0.05, 0.05, 0.15, 0.3)
_SLOPES = (0.01, 0.025, 0.06, 0.13, 0.3)
_TONES = torch.tensor([0.15, 0.38, 0.62, 0.85])
_TONE_WIDTH = 0.12
_TILE = 8  # pixels: the grid of latents, on which tiled styles draw
_NUM_SCALES = 3


def describe(pictures_BCHW: Tensor) -> Tensor:
    """(B, features) of pictures in [0, 1]; any size from 32 pixels."""
    luma = torch.einsum("c,bchw->bhw", _LUMA, pictures_BCHW)
    parts = [_colours(pictures_BCHW, luma), _palette(pictures_BCHW, luma), _tiles(luma)]
    level = luma[:, None]
    for _ in range(_NUM_SCALES):
        parts.append(_lines(pictures_BCHW, level))
        level = functional.avg_pool2d(level, 2)
    return torch.cat(parts, dim=1)


def _colours(pictures: Tensor, luma: Tensor) -> Tensor:
    """Means, spreads and how often which levels and tints occur."""
    flat = pictures.flatten(2)
    red, green, blue = flat.unbind(1)
    opponent = torch.stack([red - green, blue - (red + green) / 2], dim=1)
    spread = [flat.mean(2), flat.std(2), opponent.mean(2), opponent.std(2), _shares(luma, _LEVELS)]
    return torch.cat([*spread, *(_shares(one, _OPPONENTS) for one in opponent.unbind(1))], dim=1)


def _palette(pictures: Tensor, luma: Tensor) -> Tensor:
    """The colour of dark, middle and bright pixels, and how far it is from being one colour."""
    flat = pictures.flatten(2)
    weight = torch.exp(-(((luma.flatten(1)[:, None] - _TONES[:, None]) / _TONE_WIDTH) ** 2)) + 1e-4
    total = weight.sum(2)[..., None]
    mean = torch.einsum("btn,bcn->btc", weight, flat) / total
    square = torch.einsum("btn,bcn->btc", weight, flat.square()) / total
    spread = (square - mean.square()).clamp(min=0).sqrt()
    return torch.cat([(mean - _TONES[:, None]).flatten(1), spread.flatten(1), weight.mean(2)], dim=1)


def _lines(pictures: Tensor, level: Tensor) -> Tensor:
    """At one scale: how steep edges are, whether lines are dark or bright, relief light, edge colours."""
    across, down = level[..., :-1, 1:] - level[..., :-1, :-1], level[..., 1:, :-1] - level[..., :-1, :-1]
    slope = torch.hypot(across, down).flatten(1)
    ridge = (functional.avg_pool2d(level, 3, 1) - level[..., 1:-1, 1:-1]).flatten(1)
    dark, bright = ridge.clamp(min=0).square().mean(1).sqrt(), ridge.clamp(max=0).square().mean(1).sqrt()
    numbers = [
        torch.log(slope.mean(1) + 1e-3),
        ridge.std(1),
        dark - bright,
        (ridge.abs() < 0.004).float().mean(1),
        (ridge * level[..., 1:-1, 1:-1].flatten(1)).mean(1) * 30,
        (across * down).flatten(1).mean(1) * 100,
        (across + down).flatten(1).pow(3).mean(1) * 100,
    ]
    colours = functional.interpolate(pictures, size=level.shape[-2:], mode="area")[..., :-1, :-1].flatten(2)
    share = slope / (slope.sum(1, keepdim=True) + 1e-4)
    on_edges = torch.einsum("bn,bcn->bc", share, colours) - colours.mean(2)
    return torch.cat([_shares(slope, _SLOPES), torch.stack(numbers, dim=1), on_edges], dim=1)


def _tiles(luma: Tensor) -> Tensor:
    """How much steeper the steepest column and row of a tile is, and how flat the flattest."""
    found = []
    for profile in (luma.diff(dim=2).abs().mean(1), luma.diff(dim=1).abs().mean(2)):
        whole = profile.shape[1] // _TILE * _TILE
        phases = profile[:, :whole].unflatten(1, (-1, _TILE)).mean(1)
        base = phases.mean(1) + 1e-3
        found += [phases.amax(1) / base, phases.amin(1) / base]
    return torch.stack(found, dim=1)


def _shares(values: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """(B, thresholds): the share of each row's values above them."""
    flat = values.flatten(1)
    return torch.stack([(flat > threshold).float().mean(1) for threshold in thresholds], dim=1)
