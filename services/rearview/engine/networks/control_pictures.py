"""What ControlNets are shown of a frame, drawn on the frame's device: edges, depth, or the frame itself. What
came with the frame is shown as it is.

Canny's edges are OpenCV's, pixel by pixel. Nothing here knows a past: the range of depth is the frame's own.
Shape legend: B frames, H W of the frame, C channels (3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rearview.contract.controls import ControlPicture
from rearview.contract.frame import control_plane
from rearview.contract.settings import Settings
from rearview.engine.networks.depth import DepthEstimator, depth_picture, range_of

__all__ = ["ControlPictures", "canny", "soft_edges"]

LOW, HIGH = 100, 200
"""Canny's thresholds: those of the published ControlNets' examples."""
TANGENT_22 = 13573
"""tan(22.5 degrees) in units of 2**-15, as OpenCV has it."""
ROUNDS = 8
"""Pixels by which edges grow before it is asked whether they still do: each look waits for the device."""
MOST_ROUNDS = 256
"""Pixels by which they grow at all, along the edge: no frame may hold up others, whatever is drawn in it."""
SOFT_GAIN = 4.0
"""A smoothed step from black to white has levels of 255."""
LUMA = (0.299, 0.587, 0.114)
BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class ControlPictures:
    """Draws what the controls of a deployment are shown. Stateless."""

    def __init__(
        self, kinds: Mapping[str, ControlPicture], depths: Mapping[str, DepthEstimator], dtype: torch.dtype
    ) -> None:
        """`kinds`: by name of the control; `depths`: of those that are shown depth, estimators by name."""
        self._kinds, self.depths, self._dtype = kinds, depths, dtype

    @property
    def names(self) -> Collection[str]:
        """Of all controls."""
        return self._kinds.keys()

    def draw(
        self, images_BHWC: Tensor, settings: Sequence[Settings], sent: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """What the acting controls of each frame are shown, (H, W, 3) uint8, by plane (`control_plane`).
        `images_BHWC`: uint8; `settings`: those of each; `sent`: its planes, of which those that are for a
        control are taken in place of what would be drawn. A control of which nothing can be drawn, and whose
        picture was not sent, is left out.
        """
        found: list[dict[str, Tensor]] = [{} for _ in settings]
        users: dict[str, list[int]] = {}
        for at, (under, planes) in enumerate(zip(settings, sent, strict=True)):
            for one in under.acting_controls:
                if (came := planes.get(control_plane(one.name))) is not None:
                    found[at][control_plane(one.name)] = came
                elif self._kinds[one.name] is not ControlPicture.SENT:
                    users.setdefault(one.name, []).append(at)
        for name, ats in sorted(users.items()):
            chosen = images_BHWC if len(ats) == len(settings) else images_BHWC[ats]
            for at, drawn in zip(ats, self._draw(name, chosen).unbind(0), strict=True):
                found[at][control_plane(name)] = drawn
        return found

    def _draw(self, name: str, images_BHWC: Tensor) -> Tensor:
        kind = self._kinds[name]
        if kind is ControlPicture.CANNY:
            return canny(images_BHWC)
        if kind is ControlPicture.SOFT_EDGES:
            return soft_edges(images_BHWC)
        if kind is ControlPicture.DEPTH:
            return self._depth(self.depths[name], images_BHWC)
        return images_BHWC

    def _depth(self, estimator: DepthEstimator, images_BHWC: Tensor) -> Tensor:
        pixels_BCHW = images_BHWC.permute(0, 3, 1, 2).to(self._dtype) * (2.0 / 255.0) - 1.0
        depth_BST = estimator(pixels_BCHW)
        grey_BCHW = depth_picture(depth_BST, range_of(depth_BST), *images_BHWC.shape[1:3])
        return _levels((grey_BCHW + 1.0) * 127.5).permute(0, 2, 3, 1)


def canny(images_BHWC: Tensor, low: int = LOW, high: int = HIGH) -> Tensor:
    """Edges of uint8 frames (B, H, W, 3), of that shape: 255 on them, else 0. As `cv2.Canny` finds them, but
    for weak ones that are joined to a strong one over more than `MOST_ROUNDS` pixels.
    """
    across, down = _steepest(images_BHWC)
    strength_BHW = across.abs() + down.abs()
    around = F.pad(strength_BHW, (1, 1, 1, 1))
    height, width = strength_BHW.shape[1:]

    def beside(dy: int, dx: int) -> Tensor:
        return around[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    x, y = across.abs(), down.abs() << 15
    flat, steep = x * TANGENT_22, x * TANGENT_22 + (x << 16)
    level = (strength_BHW > beside(0, -1)) & (strength_BHW >= beside(0, 1))
    upright = (strength_BHW > beside(-1, 0)) & (strength_BHW >= beside(1, 0))
    falling = (strength_BHW > beside(-1, -1)) & (strength_BHW > beside(1, 1))
    rising = (strength_BHW > beside(-1, 1)) & (strength_BHW > beside(1, -1))
    slanted = torch.where((across ^ down) < 0, rising, falling)
    crest = torch.where(y < flat, level, torch.where(y > steep, upright, slanted))
    edges_BHW = _grown((strength_BHW > high) & crest, (strength_BHW > low) & crest)
    return _grey(edges_BHW.to(torch.uint8) * 255)


def soft_edges(images_BHWC: Tensor) -> Tensor:
    """How steep the smoothed brightness of uint8 frames (B, H, W, 3) is: grey pictures of that shape."""
    luma = torch.tensor(LUMA, device=images_BHWC.device)
    grey_B1HW = (images_BHWC.to(torch.float32) @ luma)[:, None]
    blur = torch.tensor(BLUR, device=grey_B1HW.device)
    smooth = F.conv2d(F.pad(grey_B1HW, (2, 2, 2, 2), mode="replicate"), blur.view(1, 1, 1, 5))
    smooth = F.conv2d(smooth, blur.view(1, 1, 5, 1))[:, 0]
    across, down = _slopes(smooth, (3.0, 10.0, 3.0))
    steepness_BHW = (across.square() + down.square()).sqrt() / 32.0
    return _grey(_levels(SOFT_GAIN * steepness_BHW))


def _steepest(images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's slopes (B, H, W), int32, of each pixel's steepest channel; of equals the first counts."""
    slopes = [_slopes(plane.to(torch.float32), (1.0, 2.0, 1.0)) for plane in images_BHWC.unbind(-1)]
    across, down = (each.to(torch.int32) for each in slopes[0])
    for other_across, other_down in slopes[1:]:
        x, y = other_across.to(torch.int32), other_down.to(torch.int32)
        is_steeper = x.abs() + y.abs() > across.abs() + down.abs()
        across, down = torch.where(is_steeper, x, across), torch.where(is_steeper, y, down)
    return across, down


def _slopes(plane_BHW: Tensor, weights: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, across and down, (B, H, W), smoothed the other way by `weights`. Outside the
    frame its border goes on.
    """
    padded = F.pad(plane_BHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    before, at, after = weights
    across = padded[:, :, 2:] - padded[:, :, :-2]
    across = before * across[:, :-2] + at * across[:, 1:-1] + after * across[:, 2:]
    down = padded[:, 2:] - padded[:, :-2]
    down = before * down[:, :, :-2] + at * down[:, :, 1:-1] + after * down[:, :, 2:]
    return across, down


def _grown(strong_BHW: Tensor, weak_BHW: Tensor) -> Tensor:
    """Strong pixels, and the weak ones that are joined to them, by corners too."""
    edges, before = strong_BHW, -1
    for _ in range(MOST_ROUNDS // ROUNDS):
        if (found := int(edges.sum())) == before:
            break
        before = found
        for _ in range(ROUNDS):
            wide = edges.clone()
            wide[:, :, 1:] |= edges[:, :, :-1]
            wide[:, :, :-1] |= edges[:, :, 1:]
            tall = wide.clone()
            tall[:, 1:] |= wide[:, :-1]
            tall[:, :-1] |= wide[:, 1:]
            edges = tall & weak_BHW
    return edges


def _levels(values: Tensor) -> Tensor:
    return values.round().clamp(0.0, 255.0).to(torch.uint8)


def _grey(plane_BHW: Tensor) -> Tensor:
    return plane_BHW[..., None].expand(-1, -1, -1, 3)
