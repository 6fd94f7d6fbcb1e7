"""The size of a session's pictures, and how a picture of another shape is brought to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from rearview.client.answers import Image

__all__ = ["Fit", "Room", "fit_frame", "fitted_size", "told_fit", "upright_size"]

Size = tuple[int, int]
"""Width and height, pixels."""


class Fit(Enum):
    """How a picture of another shape is brought to the session's size."""

    KEEP = "keep"
    """The session gets the picture's own shape, as near as the model takes it; the little that is left over
    is cut off. At a size that is given: as CROP."""
    CROP = "crop"
    """Scaled to cover, the rest cut off evenly."""
    STRETCH = "stretch"
    """Scaled to the size, whatever its shape."""
    PAD = "pad"
    """Scaled to fit inside, black around it."""


@dataclass(frozen=True)
class Room:
    """The sizes that a session may have, pixels."""

    max_pixels: int
    """Width times height."""
    multiple: int = 8
    """Of both sides."""
    min_side: int = 64
    max_side: int = 1024

    def snapped(self, source: Size) -> Size:
        """The size for pictures shaped as `source`: little is cut off of them, and few pixels are unused."""
        first = math.ceil(self.min_side / self.multiple) * self.multiple
        sides = range(first, self.max_side + 1, self.multiple)
        sizes = [size for size in product(sides, sides) if size[0] * size[1] <= self.max_pixels]
        if not sizes:
            raise ValueError(f"no size with sides of {first} and more has {self.max_pixels} pixels")
        return max(sizes, key=lambda size: _kept(source, size) ** 4 * size[0] * size[1])


def told_fit(source: Size, target: Size, fit: Fit) -> str:
    """What `fit` does to pictures of the size `source`, for the user."""
    if source == target:
        return f"pictures keep their size, {source[0]}x{source[1]}"
    text = f"pictures of {source[0]}x{source[1]} become {target[0]}x{target[1]}"
    kept = _kept(source, target)
    if kept > 1.0 - 1e-3:
        return text
    is_wide = source[0] * target[1] > source[1] * target[0]
    if fit is Fit.STRETCH:
        return f"{text}: stretched by {1.0 / kept - 1.0:.1%}, in {'height' if is_wide else 'width'}"
    if fit is Fit.PAD:
        return f"{text}: {1.0 - kept:.1%} of them black, {'above and below' if is_wide else 'on both sides'}"
    return f"{text}: {1.0 - kept:.1%} of the {'width' if is_wide else 'height'} cut off"


def _kept(source: Size, target: Size) -> float:
    """The share of a picture that is seen when it is cropped to another shape."""
    ratio = (source[0] * target[1]) / (source[1] * target[0])
    return min(ratio, 1.0 / ratio)


def fit_frame(frame: Any, width: int, height: int, fit: Fit, aspect: Fraction = Fraction(1)) -> Image:
    """Bring an `av.VideoFrame` to (height, width, 3) RGB, upright. `aspect`: its pixels' width to height."""
    quarter_turns = round(frame.rotation / 90) % 4
    flat = (height, width) if quarter_turns % 2 else (width, height)
    return np.ascontiguousarray(np.rot90(_fit_flat(frame, *flat, fit, aspect), quarter_turns))


def upright_size(frame: Any, aspect: Fraction = Fraction(1)) -> Size:
    """Of an `av.VideoFrame`, in square pixels, as it is to be seen."""
    width, height = max(1, round(frame.width * aspect)), frame.height
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)


def fitted_size(source: Size, target: Size, aspect: Fraction, fit: Fit) -> Size:
    """The size to scale to before cropping or padding. `aspect` is that of the source's pixels."""
    if fit is Fit.STRETCH:
        return target
    scales = (Fraction(target[0]) / (source[0] * aspect), Fraction(target[1], source[1]))
    scale = min(scales) if fit is Fit.PAD else max(scales)
    return max(1, round(source[0] * aspect * scale)), max(1, round(source[1] * scale))


def _fit_flat(frame: Any, width: int, height: int, fit: Fit, aspect: Fraction) -> Image:
    scaled_width, scaled_height = fitted_size((frame.width, frame.height), (width, height), aspect, fit)
    scaled: Image = frame.to_ndarray(
        format="rgb24", width=scaled_width, height=scaled_height, interpolation="BICUBIC"
    )
    if (scaled_width, scaled_height) == (width, height):
        return scaled
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    if fit is not Fit.PAD:
        return scaled[top : top + height, left : left + width]
    padded = np.zeros((height, width, 3), np.uint8)
    padded[-top : -top + scaled_height, -left : -left + scaled_width] = scaled
    return padded
