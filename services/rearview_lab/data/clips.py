"""Training clips with exactly known motion: one window moving over a scene and over its styled version.

The same path is cut from both, so targets move exactly as the source does. Motions are affine and small:
still, whole pixels, parts of a pixel, and slow zooms with a turn. Tiled styles move by whole tiles only.
Shape legend: K clips, F frames of each; frames of one clip are neighbouring rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rearview_lab.data.dataset import Dataset
from rearview_lab.data.scenes import SCENE_SIZE
from rearview_lab.data.styles import PIXEL_ART_TILE, STYLES

WINDOW = 96  # pixels, unless told
MAX_SPEED = 4.0  # pixels a frame
_SHARE_STILL, _SHARE_WHOLE, _SHARE_ZOOM = 0.15, 0.25, 0.25
_SHARE_PASSED, _MAX_PASSED, _SHARE_OTHER = 0.6, 60, 0.2  # of clips with a sink; frames
_FAR = 10.0  # a motion that leads out of the picture: nothing can be compared
_MARGIN = 0.08  # of the window's half width: left out where frames are compared
_TILED = STYLES.index("pixel-art")


@dataclass(frozen=True)
class Clips:
    """Pictures in -1..1 of some clips and their motion."""

    natural: Tensor  # (K * F, 3, window, window)
    styled: Tensor
    motion: Tensor  # (K, F - 1, 2, 3): from a frame's coordinates (-1..1) to those of the frame before
    styles: NDArray[np.int64]  # (K,)

    @property
    def length(self) -> int:
        return int(self.motion.shape[1]) + 1


def make_clips(
    data: Dataset,
    rng: np.random.Generator,
    *,
    num_clips: int,
    length: int,
    device: torch.device,
    style_weights: NDArray[np.float64],
    sink: int = 0,
    window: int = WINDOW,
) -> Clips:
    """Draw scenes, styles and paths.

    `sink`: so many first frames stand for the start of a long stream. In some clips time passes after them,
    and in some they show another scene. `window`: side of the pictures, pixels.
    """
    scenes = np.repeat(rng.integers(len(data), size=num_clips)[:, None], length, axis=1)
    styles = rng.choice(len(STYLES), num_clips, p=style_weights)
    paths = []
    for clip, style in enumerate(styles):
        passed = int(rng.integers(1, _MAX_PASSED)) if sink and rng.random() < _SHARE_PASSED else 0
        path = draw_path(rng, length + passed, tiled=bool(style == _TILED), window=window)
        paths.append(np.concatenate([path[:sink], path[sink + passed :]]))
        if sink and rng.random() < _SHARE_OTHER:
            scenes[clip, :sink] = rng.integers(len(data))
    views = torch.from_numpy(np.stack(paths)).float().to(device)
    rows = np.repeat(styles, length)
    both = [data.pictures(scenes.ravel(), chosen, device) for chosen in (np.zeros_like(rows), rows)]
    natural, styled = (_cut(picture, views.flatten(0, 1), window) for picture in both)
    motion = (torch.linalg.inv(views[:, :-1]) @ views[:, 1:])[:, :, :2]
    cut = torch.from_numpy(scenes[:, 1:] != scenes[:, :-1]).to(device)
    motion[cut] = motion.new_tensor([[1.0, 0.0, _FAR], [0.0, 1.0, _FAR]])
    return Clips(natural, styled, motion, styles)


def draw_path(
    rng: np.random.Generator, length: int, *, tiled: bool = False, window: int = WINDOW
) -> NDArray[np.float64]:
    """Maps from window coordinates (-1..1) to scene coordinates, ``(length, 3, 3)``."""
    room = (SCENE_SIZE - window) / 2  # pixels the window's centre may leave the scene's
    step = PIXEL_ART_TILE if tiled else 1
    centre = np.round(rng.uniform(-room, room, 2) / step) * step
    angle = rng.uniform(0, 2 * np.pi)
    speed = rng.uniform(0.3, MAX_SPEED)
    velocity = np.asarray([speed * np.cos(angle), speed * np.sin(angle)], dtype=np.float64)
    zoom = turn = 0.0
    kind = rng.random()
    if tiled:
        velocity = rng.integers(-1, 2, 2) * np.float64(step * (kind < 0.3))
    elif kind < _SHARE_STILL:
        velocity = np.zeros(2)
    elif kind < _SHARE_STILL + _SHARE_WHOLE:
        velocity = np.round(velocity)
    elif kind < _SHARE_STILL + _SHARE_WHOLE + _SHARE_ZOOM:
        zoom, turn = rng.uniform(-0.012, 0.012), np.deg2rad(rng.uniform(-0.4, 0.4))
    places = _reflected(centre + velocity * np.arange(length)[:, None], room)
    scales = np.exp(zoom * (np.arange(length) - (length - 1 if zoom > 0 else 0)))
    frames = zip(places, scales, turn * np.arange(length), strict=True)
    return np.stack([_view(*given, window / SCENE_SIZE) for given in frames])


def _reflected(place: NDArray[np.float64], room: float) -> NDArray[np.float64]:
    """Paths turn round at the border of the room."""
    return np.asarray(np.abs((place - room) % (4 * room) - 2 * room) - room, dtype=np.float64)


def _view(place: NDArray[np.float64], scale: float, turn: float, share: float) -> NDArray[np.float64]:
    view = np.eye(3)
    cosine, sine = np.cos(turn), np.sin(turn)
    view[:2, :2] = scale * share * np.array([[cosine, -sine], [sine, cosine]])
    view[:2, 2] = place / (SCENE_SIZE / 2)
    return view


def _cut(picture: Tensor, views: Tensor, window: int) -> Tensor:
    grid = F.affine_grid(views[:, :2], [len(views), 3, window, window], align_corners=False)
    cut = F.grid_sample(picture, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return cut.clamp(-1, 1)


def unsteadiness(residual: Tensor, motion: Tensor, clips: Tensor | None = None) -> Tensor:
    """Mean difference of each frame's residual to the residual before, moved by the known motion.

    `residual`: ``(K * F, channel, height, width)``, output less target; what moves with the target counts
    nothing, so neither blur nor a constant error is rewarded. `clips`: ``(K,)`` True for those that count.
    """
    length = motion.shape[1] + 1
    frames = residual.unflatten(0, (-1, length))
    if clips is not None:
        if not bool(clips.any()):
            return residual.new_zeros(())
        frames, motion = frames[clips], motion[clips]
    before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    grid = F.affine_grid(motion.flatten(0, 1), list(after.shape), align_corners=False)
    seen = (grid.abs().amax(-1) < 1 - _MARGIN)[:, None].to(after)
    moved = F.grid_sample(before, grid, padding_mode="border", align_corners=False)
    wavering: Tensor = ((after - moved).abs() * seen).sum() / (seen.sum() * after.shape[1]).clamp_min(1)
    return wavering
