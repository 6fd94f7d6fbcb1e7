"""How much of a style a plain filter could do: a colour map and a 5x5 filter, fitted, then tried elsewhere.

On every second frame a filter is fitted that a photo editor could have: a pixel's change depends on its own
colour (a table of 7 x 7 x 7 colours, read trilinearly) and, linearly, on the 5 x 5 pixels around it, of the
input and of what the table alone makes of it. On the other frames it then explains some share of the
variance of output - input. What it leaves are lines, strokes and tiles, and also noise: so the share is read
beside the warp error. Frames that are tried are neighbours of fitted ones, which favours the filter.
Shape legend: n sampled pixels, F features, T targets, H W of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rearview_lab.data.styles import FILTERS
from rearview_lab.evaluation.clips import Clip
from rearview_lab.evaluation.parts import Look, held_out_outputs
from rearview_lab.evaluation.runner import Translator, as_picture

__all__ = ["GOAL", "Explained", "explained_figures", "explained_share"]

GOAL = 0.60
"""A style of which a filter explains more is hardly more than a filter."""
TABLE_SIDE = 7
WINDOW = 5
PIXELS = 4096
"""Of each frame, drawn once for all styles."""
RIDGE = 1e-3
"""Of the normal equations, in pixels: colours that no frame has stay as they are."""
MIN_VARIANCE = 1e-7
"""Of the change, in squared levels of 1: below it nothing was asked for."""


@dataclass(frozen=True)
class Explained:
    """Shares of the change's variance, at most 1; NaN where nothing changes."""

    model: float
    teacher: float | None
    """Of the style's own training filter on the same frames; None for a style that has none."""

    @property
    def reaches_goal(self) -> bool | None:
        """None for a style that is to change nothing: what it changes all the same is no style."""
        if self.teacher is not None and math.isnan(self.teacher):
            return None
        return self.model <= GOAL


def explained_figures(
    translator: Translator, clips: Sequence[Clip], looks: Sequence[Look]
) -> dict[str, Explained]:
    """By style, over the frames of all clips, translated per frame."""
    frames = [frame for clip in clips for frame in clip.frames]
    outputs = [pictures for _, pictures in held_out_outputs(translator, frames, looks)]
    sources = [as_picture(frame) for frame in frames]
    found = {}
    for position, look in enumerate(looks):
        model = explained_share(sources, [pictures[position] for pictures in outputs])
        teacher = None
        if look.style in FILTERS:
            targets = [torch.from_numpy(FILTERS[look.style](frame.numpy())) for frame in frames]
            teacher = explained_share(sources, [as_picture(target) for target in targets])
        found[look.style] = Explained(model, teacher)
    return found


def explained_share(sources: Sequence[Tensor], pictures: Sequence[Tensor]) -> float:
    """Of the variance of picture - source on every second frame, what a filter explains that was fitted to
    the others. Frames (3, H, W) in [0, 1], at least two. Below 0: it is worse than the mean change.
    """
    assert len(sources) == len(pictures) >= 2, f"{len(sources)} sources, {len(pictures)} pictures"
    places = [_places(source, index) for index, source in enumerate(sources)]
    changes = [
        (picture - source).flatten(1)[:, at].T.double()
        for source, picture, at in zip(sources, pictures, places, strict=True)
    ]
    fitted, tried = range(0, len(sources), 2), range(1, len(sources), 2)
    own = _Fit(TABLE_SIDE**3)
    for index in fitted:
        own.add(_colours(sources[index], places[index]), changes[index])
    table = own.solve().T.reshape(1, 3, *[TABLE_SIDE] * 3).float()

    def features(index: int) -> Tensor:
        source, at = sources[index], places[index]
        return torch.cat(
            [_colours(source, at), _around(source, at), _around(source + _look_up(table, source), at)], dim=1
        )

    whole = _Fit(TABLE_SIDE**3 + 2 * 3 * WINDOW**2)
    for index in fitted:
        whole.add(features(index), changes[index])
    weights = whole.solve()
    left = torch.cat([changes[index] - features(index) @ weights for index in tried])
    asked = torch.cat([changes[index] for index in tried])
    variance = (asked - asked.mean(0)).square().mean()
    return math.nan if variance < MIN_VARIANCE else float(1 - left.square().mean() / variance)


class _Fit:
    """Least squares, a frame after another."""

    def __init__(self, num_features: int) -> None:
        self._square = RIDGE * torch.eye(num_features, dtype=torch.float64)
        self._product = torch.zeros(num_features, 3, dtype=torch.float64)

    def add(self, features_nF: Tensor, targets_nT: Tensor) -> None:
        self._square += features_nF.T @ features_nF
        self._product += features_nF.T @ targets_nT

    def solve(self) -> Tensor:
        """(F, T)."""
        found: Tensor = torch.linalg.solve(self._square, self._product)
        return found


def _places(source: Tensor, index: int) -> Tensor:
    """Which pixels of a frame are looked at, the same for every style."""
    pixels = source[0].numel()
    generator = torch.Generator().manual_seed(index)
    return torch.randperm(pixels, generator=generator)[:PIXELS]


def _colours(source: Tensor, at: Tensor) -> Tensor:
    """How near each pixel's colour is to each of the table's, trilinearly: (n, F), rows sum to 1."""
    place_n3 = source.flatten(1)[:, at].T.double().clamp(0, 1) * (TABLE_SIDE - 1)
    low_n3 = place_n3.floor().clamp(max=TABLE_SIDE - 2)
    part_n3 = place_n3 - low_n3
    weights = torch.zeros(len(at), TABLE_SIDE**3, dtype=torch.float64)
    for corner in range(8):
        step = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        share = torch.where(step == 1, part_n3, 1 - part_n3).prod(1)
        red, green, blue = (low_n3.long() + step).unbind(1)
        node = (red * TABLE_SIDE + green) * TABLE_SIDE + blue
        weights.scatter_add_(1, node[:, None], share[:, None])
    return weights


def _look_up(table_1TRGB: Tensor, source: Tensor) -> Tensor:
    """What the table alone makes of a whole picture: (3, H, W)."""
    # grid_sample reads (x, y, z) as (last, middle, first) dimension of the table.
    grid = (source.flip(0).permute(1, 2, 0) * 2 - 1)[None, None]
    found = F.grid_sample(table_1TRGB, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return found[0, :, 0]


def _around(picture: Tensor, at: Tensor) -> Tensor:
    """The pixels around each, (n, 3 * 25)."""
    padded = F.pad(picture[None], [WINDOW // 2] * 4, mode="reflect")
    return F.unfold(padded, WINDOW)[0][:, at].T.double()
