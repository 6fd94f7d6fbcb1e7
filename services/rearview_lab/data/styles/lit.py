"""Teachers that glow in the dark, and the one made of tiles."""

from __future__ import annotations

import cv2
import numpy as np

from rearview_lab.data.photos import Image
from rearview_lab.data.styles.fields import (
    as_bytes,
    blur,
    dark_lines,
    gradient,
    lifted,
    luma,
    palette,
    ramp,
    saturate,
    shaded,
    smooth,
    soft_levels,
    unit,
)
from rearview_lab.data.styles.marks import border_distance, firmness, hatching, moved, tone_labels

PIXEL_ART_TILE = 8  # pixels; equals the reduction of the autoencoder, so that tiles sit on the latent grid


def neon(picture: Image) -> Image:
    """Glass tubes along the contours, coloured by their direction, each with a fainter one beside it."""
    source = unit(picture)
    flat = blur(luma(smooth(source)), 1.6)
    tone = lifted(flat, 0.7)
    distance = border_distance(tone_labels(tone, 3))
    across, down = gradient(blur(flat, 2.0))
    turn = ((across**2 - down**2) / (across**2 + down**2 + 1e-5))[..., None]
    cyan, pink = np.array([0.1, 0.95, 1.0], np.float32), np.array([1.0, 0.15, 0.85], np.float32)
    colour = (cyan + pink) / 2 + turn * (pink - cyan) / 2
    firm = firmness(flat)
    wire = dark_lines(luma(source), 1.4, 26)
    tube = np.maximum(firm * ramp(distance, 3.0, 1.0), wire)
    echo = (0.3 + 0.7 * firm) * ramp(np.abs(distance - 9), 1.8, 0.5)
    night = palette(flat, [(0, (14, 4, 38)), (0.5, (70, 26, 122)), (1, (150, 120, 214))])
    night = shaded(night, 1 - 0.8 * ramp(distance, 8, 4) * firm)
    light = shaded(colour, tube + 0.55 * echo)
    core = 0.75 * (firm * ramp(distance, 1.6, 0.4))[..., None]
    return as_bytes(night + light + 0.9 * blur(light, 3.5) + core)


def cyberpunk(picture: Image) -> Image:
    """Violet to cyan by luminance on a torn screen: glowing scan lines, and colours apart at every edge."""
    source = unit(picture)
    tone = luma(source)
    lines = hatching(tone, 0, 8.0, 12.0)
    torn = moved(tone, 2.5 * lines, np.zeros_like(lines))
    left, right = (moved(torn, np.full_like(tone, by), np.zeros_like(tone)) for by in (-7.0, 7.0))
    level = np.clip((torn - 0.5) * 1.2 + 0.5, 0, 1)
    stops = [
        (0.0, (10, 4, 34)),
        (0.3, (74, 14, 116)),
        (0.55, (214, 36, 152)),
        (0.8, (70, 190, 240)),
        (1.0, (200, 255, 255)),
    ]
    graded = 0.8 * palette(level, stops) + 0.2 * source
    graded[..., 0] += 0.9 * (left - torn)
    graded[..., 2] += 0.5 * (right - torn)
    graded[..., 1] += 0.5 * (right - torn)
    graded = shaded(graded, (0.95 + 0.65 * lines) * (1 - 0.6 * dark_lines(tone, 1.3, 20)))
    bloom = blur(np.clip(graded - 0.6, 0, 1), 5.0)
    return as_bytes(graded + 0.7 * bloom)


def pixel_art(picture: Image) -> Image:
    """Tiles of eight pixels in a reduced, saturated palette with a thin dark grid."""
    source = unit(picture)
    height, width = source.shape[:2]
    tile = PIXEL_ART_TILE
    small = cv2.resize(source, (-(-width // tile), -(-height // tile)), interpolation=cv2.INTER_AREA)
    reduced = soft_levels(np.clip(saturate(np.asarray(small, dtype=np.float32), 1.5), 0, 1), 5, 11)
    tiles = np.kron(reduced, np.ones((tile, tile, 1), np.float32))[:height, :width]
    shade = np.ones((tile, tile), np.float32)
    shade[0, :] = shade[:, 0] = 1.1
    shade[-1, :] = shade[:, -1] = 0.68
    grid = np.tile(shade, (-(-height // tile), -(-width // tile)))[:height, :width]
    return as_bytes(np.asarray(tiles * grid[..., None], dtype=np.float32))
