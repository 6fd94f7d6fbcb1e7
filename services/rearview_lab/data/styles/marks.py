"""Marks of the picture's own: lines, strokes and borders, some pixels wide, that move with what it shows.

Three kinds. `hatching` and `grain` keep where the picture's own detail lies and drop how strong it is, so
that lines are equally far apart everywhere. `along` smears a field along the contours, which makes strokes of
spots. `border_distance` tells how far the nearest border between two tones is: rims, bevels and parallel
lines are drawn at chosen distances. None of them decides anything by comparison with a neighbour, which would
flip when the picture moves by part of a pixel.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rearview_lab.data.styles.fields import Float, blur, gradient, ramp

FAINTEST = 0.005
"""Detail weaker than this, of 1, draws no lines: below it lies what rounding to bytes left."""
FAR = 36.0
"""Pixels from which on a border no longer counts: a student sees no further."""


@cache
def _wavelet(angle: float, wavelength: float, length: float) -> tuple[Float, Float]:
    """Even and odd Gabor kernels; lines run along ``angle`` degrees and keep together for ``length``."""
    half = int(length * 2.2) | 1
    down, across = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    turn = np.deg2rad(angle)
    on = across * np.cos(turn) + down * np.sin(turn)
    off = -across * np.sin(turn) + down * np.cos(turn)
    window = np.exp(-((on / length) ** 2 + (off / (0.75 * wavelength)) ** 2) / 2)
    even, odd = window * np.cos(2 * np.pi * off / wavelength), window * np.sin(2 * np.pi * off / wavelength)
    even -= window * (even.sum() / window.sum())
    scale = np.abs(even).sum()
    return (even / scale).astype(np.float32), (odd / scale).astype(np.float32)


def hatching(field: Float, angle: float, wavelength: float, length: float) -> Float:
    """Straight lines, -1..1, one every ``wavelength``, along ``angle`` degrees."""
    even, odd = (
        np.asarray(cv2.filter2D(field, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101))
        for kernel in _wavelet(angle, wavelength, length)
    )
    return np.asarray(even / np.sqrt(even**2 + odd**2 + FAINTEST**2), dtype=np.float32)


def grain(field: Float, wavelength: float) -> Float:
    """Spots of about half a wavelength, about -1..1, as strong in faint detail as in strong."""
    band = blur(field, wavelength / 6) - blur(field, wavelength / 3.6)
    strength = np.sqrt(blur(band * band, wavelength * 0.7) + FAINTEST**2)
    return np.asarray(np.clip(band / (1.6 * strength), -1, 1), dtype=np.float32)


def contour_directions(field: Float, sigma: float) -> tuple[Float, Float]:
    """Unit vectors along the contours, (across, down); their sign means nothing."""
    across, down = gradient(blur(field, 1.2))
    xx, yy, xy = blur(across * across, sigma), blur(down * down, sigma), blur(across * down, sigma)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def along(field: Float, directions: tuple[Float, Float], steps: tuple[float, ...]) -> Float:
    """Smear along the directions: a mean of three, so many pixels apart, once for every step.

    Each mean reads what the one before left, so that the whole follows a curve.
    """
    rows, columns = np.mgrid[0 : field.shape[0], 0 : field.shape[1]].astype(np.float32)
    found = field
    for step in steps:
        across, down = (each * np.float32(step) for each in directions)
        both = _at(found, columns + across, rows + down) + _at(found, columns - across, rows - down)
        found = np.asarray((found + both) / 3, dtype=np.float32)
    return found


def _at(field: Float, x: Float, y: Float) -> Float:
    return np.asarray(cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


def moved(field: Float, across: Float, down: Float) -> Float:
    """Each pixel takes what lies so many pixels to the right and down."""
    rows, columns = np.mgrid[0 : field.shape[0], 0 : field.shape[1]].astype(np.float32)
    return _at(field, columns + across, rows + down)


def border_distance(labels: NDArray[np.int32]) -> Float:
    """Pixels from each pixel to the nearest one of another label, at most `FAR`; labels at twice the size."""
    border = np.zeros(labels.shape, np.uint8)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    distance = np.minimum(cv2.distanceTransform(1 - border, cv2.DIST_L2, 5), 2 * FAR)
    height, width = labels.shape
    small = cv2.resize(distance, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(small / 2, dtype=np.float32)


def firmness(flat: Float) -> Float:
    """0..1: how much of an edge there is close by; borders where tone only drifts get 0."""
    across, down = gradient(flat)
    return ramp(blur(np.hypot(across, down).astype(np.float32), 2.5), 0.006, 0.022)


def enlarged(field: Float) -> Float:
    """At twice the size, smooth: borders of labels then lie between pixels."""
    return np.asarray(cv2.resize(field, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def tone_labels(field: Float, count: int) -> NDArray[np.int32]:
    """0..count - 1 by level, at twice the size."""
    return np.clip(np.floor(enlarged(field) * count), 0, count - 1).astype(np.int32)
