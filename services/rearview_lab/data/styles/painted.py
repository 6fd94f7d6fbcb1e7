"""Teachers that paint: brush strokes, washes on paper, pieces of plasticine."""

from __future__ import annotations

import numpy as np

from rearview_lab.data.photos import Image
from rearview_lab.data.styles.fields import (
    as_bytes,
    blur,
    dark_lines,
    gradient,
    lifted,
    lit,
    luma,
    mix,
    palette,
    ramp,
    saturate,
    shaded,
    smooth,
    unit,
)
from rearview_lab.data.styles.marks import (
    along,
    border_distance,
    contour_directions,
    firmness,
    grain,
    moved,
    tone_labels,
)


def oil(picture: Image) -> Image:
    """Thick strokes along the contours, ridges of warm light paint and dark furrows, lit from the left."""
    source = unit(picture)
    tone = luma(source)
    directions = contour_directions(tone, 4.0)
    smeared = along(np.dstack([blur(source, 0.8), grain(tone, 10.5)]), directions, (1.5, 3, 4, 5))
    body, bristles = smeared[..., :3], np.clip(smeared[..., 3] * 3, -1, 1)
    across, down = gradient(blur(bristles, 1.2))
    body = moved(body, across * 7, down * 7)
    level = lifted(luma(body), 0.75)
    varnish = palette(
        level, [(0, (64, 32, 14)), (0.3, (140, 78, 28)), (0.65, (222, 166, 72)), (1, (255, 246, 204))]
    )
    paint = 0.65 * np.clip(saturate(body, 1.9), 0, 1) + 0.35 * varnish
    stroke = ramp(bristles, -0.5, 0.5) - 0.5
    paint = shaded(paint, 1 + 0.38 * stroke)
    paint = paint + stroke[..., None] * np.array([0.09, 0.02, -0.10], np.float32)
    paint = shaded(paint, 1 - 0.6 * dark_lines(tone, 1.2, 16))
    return as_bytes(paint + lit(stroke, 0.7, 0.25)[..., None])


def watercolor(picture: Image) -> Image:
    """Pale washes that leave white gaps at firm edges, pool into rims and bloom inside; thin ink lines."""
    source = unit(picture)
    tone = luma(source)
    flat = blur(smooth(smooth(source)), 2.0)
    firm = firmness(luma(flat))
    distance = border_distance(tone_labels(lifted(luma(flat), 0.7), 4))
    bloom = grain(tone, 26.0)
    across, down = gradient(bloom)
    wash = moved(blur(source, 2.0), across * 30, down * 30)
    level = lifted(luma(wash), 1)
    clear = np.clip(saturate(shaded(wash, (lifted(level, 0.45) + 0.1) / (level + 0.1)), 1.15), 0, 1)
    clear = np.maximum(clear, np.array([0.12, 0.15, 0.28], np.float32))
    gap, rim = firm * ramp(distance, 2.6, 0.6), np.exp(-(((distance - 3.8 * firm) / 1.7) ** 2))
    tide = np.exp(-((bloom / 0.16) ** 2))
    density = np.clip(0.40 + 0.45 * ramp(bloom, -0.3, 0.3) + 0.35 * tide + 0.7 * rim, 0, 1.25) * (1 - gap)
    paper = np.array([1.0, 0.99, 0.96], np.float32)
    painted = paper - (1.04 - clear) * density[..., None]
    return as_bytes(mix(painted, (70, 66, 96), 0.7 * dark_lines(tone, 0.9, 20)))


def clay(picture: Image) -> Image:
    """Rounded lumps of plasticine pressed together, with deep seams and finger prints."""
    source = unit(picture)
    flat = blur(smooth(smooth(source)), 2.5)
    tone = lifted(luma(flat), 0.7)
    distance = border_distance(tone_labels(tone, 3))
    bulge = np.sqrt(np.clip(1 - (1 - np.clip(distance / 10, 0, 1)) ** 2, 0, 1)).astype(np.float32)
    bulge = 1 - (1 - bulge) * (0.25 + 0.75 * firmness(luma(flat)))
    lumps = grain(luma(flat), 30.0)
    height = blur(bulge * 4 + lumps * 3.5, 1.2)
    level = np.clip(luma(flat), 0, 1)
    colour = np.clip(saturate(shaded(flat, (lifted(level, 0.6) + 0.1) / (level + 0.1)), 1.5), 0, 1)
    dough = palette(
        lifted(level, 0.6),
        [(0, (104, 84, 142)), (0.4, (196, 112, 118)), (0.75, (246, 184, 146)), (1, (255, 242, 222))],
    )
    colour = 0.55 * colour + 0.45 * dough
    prints = np.sin(distance * (2 * np.pi / 7)) * ramp(distance, 5, 9) * ramp(distance, 34, 22)
    dents = dark_lines(luma(source), 1.5, 14)
    paint = shaded(colour, 0.3 + 0.72 * bulge + 0.09 * prints - 0.4 * dents)
    return as_bytes(paint + lit(height, 0.55, 0.4)[..., None])
