"""Plain tools of the teachers: pictures as numbers from 0 to 1, blur, colours by level.

Lengths are in pixels of the picture given. Every function is one of its arguments alone and moves with the
picture: nothing here knows where on the screen a pixel lies.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rearview_lab.data.photos import Image

Float = NDArray[np.float32]
Stops = list[tuple[float, tuple[int, int, int]]]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def unit(picture: Image) -> Float:
    """Levels of 255 as 0..1."""
    return np.asarray(picture / np.float32(255), dtype=np.float32)


def as_bytes(picture: Float) -> Image:
    """0..1 as levels of 255; what lies outside is cut off."""
    return np.asarray(np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def luma(picture: Float) -> Float:
    """Luminance, (height, width)."""
    return np.asarray(picture @ _LUMA, dtype=np.float32)


def lifted(level: Float, power: float) -> Float:
    """0..1 to a power: below one, shadows come out lighter."""
    return np.asarray(np.clip(level, 0, 1) ** np.float32(power), dtype=np.float32)


def blur(field: Float, sigma: float) -> Float:
    """Gaussian."""
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), dtype=np.float32)


def saturate(picture: Float, factor: float) -> Float:
    """Colours moved away from grey of the same luminance."""
    grey = luma(picture)[..., None]
    return np.asarray(grey + (picture - grey) * factor, dtype=np.float32)


def palette(level: Float, stops: Stops) -> Float:
    """Map 0..1 onto colours interpolated between the stops."""
    positions = [position for position, _ in stops]
    channels = [np.interp(level, positions, [colour[i] / 255 for _, colour in stops]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def ramp(field: Float, low: float, high: float) -> Float:
    """0 up to ``low``, 1 from ``high`` on, smooth between; ``low`` above ``high`` falls instead."""
    part = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(part * part * (3 - 2 * part), dtype=np.float32)


def soft_levels(level: Float, count: int, sharpness: float) -> Float:
    """Posterise 0..1 to ``count`` levels with a smooth step of the given sharpness between them."""
    scaled = level * (count - 1)
    base = np.floor(scaled)
    step = 1 / (1 + np.exp(-(scaled - base - 0.5) * sharpness))
    return np.asarray((base + step) / (count - 1), dtype=np.float32)


def mix(first: Float, second: Float | tuple[int, int, int], share: Float) -> Float:
    """``first`` where the share is 0, ``second`` where it is 1; a triple is a colour in levels of 255."""
    colour = np.asarray(second, np.float32) / 255 if isinstance(second, tuple) else second
    return np.asarray(first + (colour - first) * share[..., None], dtype=np.float32)


def shaded(picture: Float, factor: Float) -> Float:
    """Every channel times the factor of its pixel."""
    return np.asarray(picture * factor[..., None], dtype=np.float32)


def gradient(field: Float) -> tuple[Float, Float]:
    """Change per pixel to the right and down."""
    scaled = field / np.float32(32)
    across = np.asarray(cv2.Scharr(scaled, cv2.CV_32F, 1, 0), dtype=np.float32)
    down = np.asarray(cv2.Scharr(scaled, cv2.CV_32F, 0, 1), dtype=np.float32)
    return across, down


def smooth(picture: Float, reach: float = 5.0, tolerance: float = 0.18) -> Float:
    """Flat patches with kept edges."""
    return np.asarray(cv2.bilateralFilter(picture, 9, tolerance, reach), dtype=np.float32)


def dark_lines(tone: Float, sigma: float, gain: float) -> Float:
    """Strength 0..1: 1 on a dark line or on the dark side of an edge (difference of Gaussians)."""
    difference = blur(tone, sigma * 1.8) - blur(tone, sigma)
    return np.asarray(np.clip((difference - 0.008) * gain, 0, 1), dtype=np.float32)


def lit(height: Float, amount: float, limit: float = 0.3) -> Float:
    """Light from the upper left on a height: what to add to a picture."""
    across, down = gradient(height)
    return np.asarray(np.clip((across + down) * amount, -limit, limit), dtype=np.float32)
