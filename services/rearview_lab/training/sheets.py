"""Contact sheets and figures of a checkpoint and its teachers on the held-out photographs and, to look at, on
frames of real clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rearview_lab.data.photos import HELD_OUT, Image, held_out_square
from rearview_lab.data.prompts import canonical_prompt
from rearview_lab.data.styles import FILTERS, STYLES
from rearview_lab.training.export import Pocket
from rearview_lab.training.losses import psnr
from rearview_lab.training.sampling import Noise, stylise

_NOISE_SEED = 7


@dataclass(frozen=True)
class Setting:
    """Strength and number of steps of one sheet."""

    strength: float = 0.4
    num_steps: int = 2


def to_tensor(picture: Image) -> Tensor:
    """``(1, 3, height, width)`` in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_image(picture_CHW: Tensor) -> Image:
    scaled = (picture_CHW.permute(1, 2, 0).float().cpu() + 1) * 127.5
    return np.asarray(scaled.round().clamp(0, 255).numpy(), dtype=np.uint8)


def every_style(pocket: Pocket, picture: Image, setting: Setting) -> dict[str, Image]:
    """One picture in all styles, by canonical prompt."""
    noise = Noise.seeded(picture.shape[0], setting.num_steps, _NOISE_SEED)
    source = to_tensor(picture).to(pocket.unet.device).expand(len(STYLES), -1, -1, -1)
    prompts = [canonical_prompt(style) for style in STYLES]
    output = stylise(
        pocket, source, prompts, noise=noise, strength=setting.strength, num_steps=setting.num_steps
    )
    return {style: to_image(row) for style, row in zip(STYLES, output, strict=True)}


def every_teacher(picture: Image) -> dict[str, Image]:
    """One picture as the teachers want it."""
    return {style: teacher(picture) for style, teacher in FILTERS.items()}


def sheet(pictures: list[Image], draw: Callable[[Image], dict[str, Image]], *, cell: int = 256) -> Image:
    """Two rows per picture: the source, then what ``draw`` makes of it in every style, labelled."""
    rows = []
    for picture in pictures:
        cells = [label(picture, "source", cell)]
        cells += [label(image, style, cell) for style, image in draw(picture).items()]
        half = (len(cells) + 1) // 2
        cells += [np.zeros_like(cells[0])] * (2 * half - len(cells))
        rows += [np.concatenate(cells[:half], axis=1), np.concatenate(cells[half:], axis=1)]
    return np.concatenate(rows, axis=0)


def label(picture: Image, text: str, cell: int) -> Image:
    """The picture at the size of a cell with its name in the lower left corner."""
    small = np.ascontiguousarray(cv2.resize(picture, (cell, cell), interpolation=cv2.INTER_AREA))
    place = (5, cell - 7)
    cv2.putText(small, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(small, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(small, dtype=np.uint8)


def write_picture(path: Path, picture: Image, *, max_bytes: int = 1_000_000) -> None:
    """Write a PNG, shrinking the picture until it fits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = picture.shape[:2]
    scale = 1.0
    while True:
        size = (round(width * scale), round(height * scale))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        ok, encoded = cv2.imencode(".png", small[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        if ok and encoded.size <= max_bytes:
            path.write_bytes(encoded.tobytes())
            return
        scale *= 0.95


def held_out_pictures(size: int = 256) -> list[Image]:
    return [held_out_square(photo.name, size) for photo in HELD_OUT]


def reconstruction_figures(
    pocket: Pocket, styles: tuple[str, ...] = ("natural", "pencil", "neon")
) -> dict[str, dict[str, float]]:
    """PSNR in dB of encode and decode alone, by photograph and style."""
    figures: dict[str, dict[str, float]] = {}
    for photo in HELD_OUT:
        figures[photo.name] = {}
        for style in styles:
            target = to_tensor(FILTERS[style](held_out_square(photo.name))).to(pocket.vae.device)
            with torch.no_grad():
                rebuilt = pocket.vae.decode(pocket.vae.encode(target).latents).sample
            figures[photo.name][style] = round(psnr(rebuilt, target), 1)
    return figures


def style_figures(pocket: Pocket, setting: Setting) -> dict[str, dict[str, float]]:
    """PSNR in dB of the model's output to the classical filter's, by photograph and style."""
    figures: dict[str, dict[str, float]] = {}
    for photo in HELD_OUT:
        picture = held_out_square(photo.name)
        outputs = every_style(pocket, picture, setting)
        figures[photo.name] = {
            style: round(psnr(to_tensor(output), to_tensor(FILTERS[style](picture))), 1)
            for style, output in outputs.items()
        }
    return figures


def style_distances(pocket: Pocket, setting: Setting) -> dict[str, float]:
    """Mean difference (0..1) of each style's output to natural, over the held-out photographs."""
    totals: dict[str, list[float]] = {style: [] for style in STYLES[1:]}
    for picture in held_out_pictures():
        outputs = every_style(pocket, picture, setting)
        for style, values in totals.items():
            values.append(float(np.abs(outputs[style].astype(float) - outputs["natural"]).mean() / 255))
    return {style: round(float(np.mean(values)), 3) for style, values in totals.items()}


def clip_pictures(folder: Path, *, size: int = 256) -> list[Image]:
    """The centre square of the middle frame of every clip in a folder."""
    import av

    pictures = []
    for file in sorted(folder.glob("*.mp4")):
        with av.open(str(file)) as container:
            frames: list[NDArray[np.uint8]] = [
                frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)
            ]
        frame = frames[len(frames) // 2]
        side = min(frame.shape[:2])
        top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
        square = frame[top : top + side, left : left + side]
        pictures.append(
            np.asarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        )
    return pictures
