"""Clips and their motion: the bundled one, generated ones that move as told, and files.

Generated pictures come from the scenes of the training with a seed that it does not use. They are still
canvases seen through an affine view that moves, so the motion between frames is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rearview.samples import sample_clip_path, sample_flow
from torch import Tensor

from rearview_lab.data.photos import Image
from rearview_lab.data.sample_clip import compose, invert, render
from rearview_lab.data.scenes import dead_leaves, portrait
from rearview_lab.evaluation.flow import (
    Affine,
    Motion,
    affine_motion,
    estimated_motion,
    layered_motion,
    scaled,
)

__all__ = ["GENERATED", "SAMPLES", "Clip", "file_clips", "generated_clip", "looping_clip", "sample_clip"]

LOOP_FRAMES = 20
"""Period of the looping clip: it divides 100."""
SAMPLES = {"sample-astronaut": 30, "sample-coffee": 150}
"""First frame in the bundled clip: one run over each photograph."""
SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif")
_SEED = 90_210
_CANVAS_FRAMES = 1.5  # sides of a frame that the canvas is wide


@dataclass(frozen=True)
class Clip:
    """Frames, and the motion into each one from the one before."""

    name: str
    frames: Sequence[Tensor]
    """(H, W, 3) uint8."""
    motions: Sequence[Motion]
    """One less than frames; of a loop as many, the last one leading from the last frame to the first."""

    @property
    def is_loop(self) -> bool:
        return len(self.motions) == len(self.frames)

    def motion_to(self, index: int) -> Motion | None:
        """The motion into frame `index` from the one before; None into the first."""
        return self.motions[index - 1] if index else None

    def repeated(self, num_frames: int) -> Clip:
        """A loop, gone through until there are so many frames; nothing is copied."""
        assert self.is_loop, f"{self.name} is not a loop"
        period = len(self.frames)
        frames = [self.frames[i % period] for i in range(num_frames)]
        return Clip(self.name, frames, [self.motions[i % period] for i in range(num_frames - 1)])


def sample_clip(name: str, num_frames: int, size: int) -> Clip:
    """A run of the bundled clip; `name` is one of SAMPLES. Its motion is stored beside it."""
    first = SAMPLES[name]
    pictures = _read(sample_clip_path(), size, first + num_frames)[first:]
    factor = size / 256
    flow = sample_flow()[first : first + len(pictures) - 1]
    return Clip(name, _tensors(pictures), [affine_motion(scaled(one, factor), size, size) for one in flow])


def generated_clip(name: str, num_frames: int, size: int) -> Clip:
    """`name` is one of GENERATED."""
    views = [GENERATED[name](index) for index in range(num_frames)]
    canvas = _canvas(name)
    if name == "occlusion":
        return _occluded(canvas, views, size)
    return _seen(name, canvas, views, size)


def looping_clip(size: int) -> Clip:
    """LOOP_FRAMES of a camera going round; the last frame leads back to the first."""
    views = [_round(index) for index in range(LOOP_FRAMES + 1)]
    clip = _seen("loop", _canvas("loop"), views, size)
    return Clip(clip.name, clip.frames[:-1], clip.motions)


def file_clips(path: Path, num_frames: int, size: int) -> list[Clip]:
    """The first frames of a video, or of every video in a folder. Their motion is estimated.

    Pictures are their centre squares. Raises OSError if there is nothing to read.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no video ({', '.join(SUFFIXES)})")
    return [_file_clip(file, num_frames, size) for file in files]


def _file_clip(path: Path, num_frames: int, size: int) -> Clip:
    pictures = _read(path, size, num_frames)
    motions = [estimated_motion(before, after) for before, after in pairwise(pictures)]
    return Clip(path.stem, _tensors(pictures), motions)


def _read(path: Path, size: int, num_frames: int) -> list[Image]:
    with av.open(str(path)) as container:
        frames = islice(container.decode(video=0), num_frames)
        return [_square(frame.to_ndarray(format="rgb24"), size) for frame in frames]


def _square(picture: Image, size: int) -> Image:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    flags = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (size, size), interpolation=flags), dtype=np.uint8)


# Views: what frame `index` sees, as (right, down, zoom, turn): shift in hundredths of a frame's side,
# magnification, degrees.
View = tuple[float, float, float, float]


def _still(index: int) -> View:
    return 0.0, 0.0, 1.0, 0.0


def _pan(index: int) -> View:
    return -20 + 1.1 * (index % 37), 0.35 * (index % 37) - 6, 1.0, 0.0


def _zoom(index: int) -> View:
    return 0.0, 0.0, 1.012 ** (index % 40), 0.4 * (index % 40)


def _slow(index: int) -> View:
    return 0.25 * (index % 80), 0.0, 1.0, 0.0


def _round(index: int) -> View:
    turn = 2 * np.pi * (index % LOOP_FRAMES) / LOOP_FRAMES
    return 3 * float(np.cos(turn)), 3 * float(np.sin(turn)), 1.0, 0.0


GENERATED: dict[str, Callable[[int], View]] = {
    "static": _still,
    "pan": _pan,
    "zoom": _zoom,
    "occlusion": _slow,
}


def _affine(view: View, size: int, canvas: int) -> Affine:
    """Pixels of the frame to those of the canvas."""
    right, down, zoom, turn = view
    scale = canvas / (_CANVAS_FRAMES * size * zoom)
    angle = np.deg2rad(turn)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (canvas - 1) / 2) + np.array([right, down]) / 100 * canvas / _CANVAS_FRAMES
    return np.concatenate([matrix, (centre - matrix @ np.full(2, (size - 1) / 2))[:, None]], axis=1)


def _canvas(name: str) -> Image:
    """Four scenes side by side, 384 pixels in all."""
    rng = np.random.default_rng([_SEED, *name.encode()])
    scenes = [portrait(rng) if rng.random() < 0.5 else dead_leaves(rng) for _ in range(4)]
    rows = [np.concatenate(scenes[i : i + 2], axis=1) for i in (0, 2)]
    return np.concatenate(rows, axis=0)


def _seen(name: str, canvas: Image, views: Sequence[View], size: int) -> Clip:
    affines = [_affine(view, size, canvas.shape[0]) for view in views]
    pictures = [render(canvas, affine, size) for affine in affines]
    maps = [compose(invert(before), after) for before, after in pairwise(affines)]
    return Clip(name, _tensors(pictures), [affine_motion(one, size, size) for one in maps])


def _occluded(canvas: Image, views: Sequence[View], size: int) -> Clip:
    """A textured disc crosses the picture, turning, faster than the ground and before it."""
    rng = np.random.default_rng([_SEED, 1])
    skin = dead_leaves(rng)
    place = [_disc_place(index, size, skin.shape[0]) for index in range(len(views))]
    ground = [_affine(view, size, canvas.shape[0]) for view in views]
    shares = [_disc_share(affine, size, skin.shape[0]) for affine in place]
    pictures = [
        _over(render(skin, figure, size), render(canvas, view, size), share)
        for figure, view, share in zip(place, ground, shares, strict=True)
    ]
    motions = [
        layered_motion(
            compose(invert(ground[i]), ground[i + 1]),
            compose(invert(place[i]), place[i + 1]),
            torch.from_numpy(shares[i]),
            torch.from_numpy(shares[i + 1]),
        )
        for i in range(len(views) - 1)
    ]
    return Clip("occlusion", _tensors(pictures), motions)


def _disc_place(index: int, size: int, texture: int) -> Affine:
    """Pixels of the frame to those of the disc's texture; the disc is 0.45 sides wide."""
    scale = texture / (0.45 * size)
    angle = np.deg2rad(-1.5 * index)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    travel = 0.2 + 0.012 * (index % 50)
    centre = np.array([travel, 0.45 + 0.004 * (index % 50)]) * size
    return np.concatenate([matrix, ((texture - 1) / 2 - matrix @ centre)[:, None]], axis=1)


def _disc_share(place: Affine, size: int, texture: int) -> NDArray[np.float32]:
    """(size, size): 1 in the disc, 0 outside, a ramp of one pixel between."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float64)
    spot = np.einsum("ij,jhw->ihw", place[:, :2], np.stack([columns, rows])) + place[:, 2, None, None]
    distance = np.hypot(*(spot - (texture - 1) / 2)) * (0.45 * size / texture)  # pixels of the frame
    return np.asarray(np.clip(0.21 * size - distance + 0.5, 0, 1), dtype=np.float32)


def _over(figure: Image, ground: Image, share: NDArray[np.float32]) -> Image:
    mixed = ground + (figure.astype(np.float32) - ground) * share[..., None]
    return (mixed + 0.5).astype(np.uint8)


def _tensors(pictures: Sequence[Image]) -> list[Tensor]:
    return [torch.from_numpy(picture) for picture in pictures]
