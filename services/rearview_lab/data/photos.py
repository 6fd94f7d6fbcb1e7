"""Photographs of scikit-image that may be used freely, and random crops of them.

Only pictures whose docstring in ``skimage.data`` states a free licence are listed; pictures without a
licence line are left out. ``HELD_OUT`` photographs never enter the training data: they serve the contact
sheets, the figures in the model card and the sample clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (height, width, 3), RGB


@dataclass(frozen=True)
class Photo:
    """One free photograph: its name in ``skimage.data``, its licence line, how often it is drawn."""

    name: str
    licence: str
    weight: float = 1.0


PHOTOS = (
    Photo("chelsea", "CC0 by the photographer (Stefan van der Walt)", 4.0),
    Photo("rocket", "public domain (SpaceX)", 4.0),
    Photo("camera", "CC0 by the photographer (Lav Varshney)", 4.0),
    Photo("clock", "public domain by the photographer (Stefan van der Walt)", 1.0),
    Photo("coins", "no known copyright restrictions (Brooklyn Museum)", 1.5),
    Photo("retina", "CC0 1.0 (Mikael Häggström)", 0.7),
    Photo("hubble_deep_field", "public domain (NASA)", 0.8),
    Photo("brick", "CC0 (CC0Textures)", 0.7),
    Photo("grass", "CC0 (DeviantArt, linolafett)", 0.9),
    Photo("gravel", "CC0 (CC0Textures)", 0.9),
)
HELD_OUT = (
    Photo("astronaut", "public domain (NASA)"),
    Photo("coffee", "CC0 by the photographer (Rachel Michetti)"),
)


@cache
def load_photo(name: str) -> Image:
    """Load one photograph as RGB; grey ones are repeated over the channels. The array is shared."""
    import skimage.data

    picture: Any = getattr(skimage.data, name)()
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    return np.ascontiguousarray(picture[..., :3], dtype=np.uint8)


def held_out_square(name: str, size: int = 256) -> Image:
    """The centre square of a held-out photograph, area-reduced to ``size`` pixels."""
    picture = load_photo(name)
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def photo_crop(rng: np.random.Generator, size: int) -> Image:
    """A random crop: scale, rotation up to 20 degrees, mirror; grey ones get a two-colour tint."""
    weights = np.array([photo.weight for photo in PHOTOS])
    photo = PHOTOS[int(rng.choice(len(PHOTOS), p=weights / weights.sum()))]
    picture = load_photo(photo.name)
    height, width = picture.shape[:2]
    grey = bool((picture[::16, ::16, 0] == picture[::16, ::16, 1]).all())
    limit = min(height, width) / (size * 1.3)
    zoom = float(np.exp(rng.uniform(np.log(0.7), np.log(min(3.2, max(limit, 0.8))))))
    angle = float(rng.uniform(-20, 20))
    reach = zoom * size * 0.6
    centre = (
        float(rng.uniform(min(reach, width / 2), max(width - reach, width / 2))),
        float(rng.uniform(min(reach, height / 2), max(height - reach, height / 2))),
    )
    shrink = max(1.0, zoom)
    source = cv2.GaussianBlur(picture, (0, 0), 0.35 * shrink) if shrink > 1.15 else picture
    matrix = cv2.getRotationMatrix2D(centre, angle, 1 / zoom)
    matrix[:, 2] += size / 2 - np.array(centre)
    flags = cv2.INTER_CUBIC if zoom < 1 else cv2.INTER_LINEAR
    crop = cv2.warpAffine(source, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if grey and rng.random() < 0.75:
        crop = _tint(rng, np.asarray(crop, dtype=np.uint8))
    return np.ascontiguousarray(crop, dtype=np.uint8)


def _tint(rng: np.random.Generator, picture: Image) -> Image:
    """Map grey levels onto a line between two random colours, dark to light."""
    dark, light = rng.uniform(0, 0.45, 3), rng.uniform(0.55, 1.0, 3)
    level = picture[..., :1].astype(np.float32) / 255
    mixed: Image = ((dark + (light - dark) * level) * 255).astype(np.uint8)
    return mixed
