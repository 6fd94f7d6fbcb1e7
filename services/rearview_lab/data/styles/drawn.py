"""Teachers that draw: hatching, outlines, prints and plans."""

from __future__ import annotations

import numpy as np

from rearview_lab.data.photos import Image
from rearview_lab.data.styles.fields import (
    as_bytes,
    blur,
    dark_lines,
    lifted,
    luma,
    mix,
    palette,
    ramp,
    saturate,
    shaded,
    smooth,
    soft_levels,
    unit,
)
from rearview_lab.data.styles.marks import border_distance, firmness, hatching, tone_labels


def pencil(picture: Image) -> Image:
    """Slanting hatches on paper, wider where it is darker, crossed in the shadows."""
    tone = luma(unit(picture))
    wide = blur(tone, 2.0)
    dark = np.float32(2.6) * (1 - lifted(wide, 0.7))
    first = ramp(dark + hatching(tone, -45, 8.0, 10.0), 1.0, 1.7)
    second = ramp(dark + hatching(tone, 30, 8.0, 10.0), 1.75, 2.45)
    line = dark_lines(tone, 1.4, 24)
    ink = 1 - (1 - 0.72 * first) * (1 - 0.72 * second) * (1 - 0.9 * line)
    return as_bytes(palette(1 - ink, [(0, (34, 34, 40)), (1, (251, 248, 241))]))


def cartoon(picture: Image) -> Image:
    """Bright flat colours inside bold outlines, with printed dots in the half tones."""
    source = unit(picture)
    flat = smooth(smooth(source))
    tone = np.clip(luma(flat), 0, 1)
    level = 0.3 + 0.7 * soft_levels(lifted(tone, 0.65), 4, 10)
    colour = np.clip(saturate(shaded(flat, (level + 0.1) / (tone + 0.1)), 1.8), 0, 1)
    raw = luma(source)
    dots = hatching(raw, 45, 9.0, 5.0) + hatching(raw, -45, 9.0, 5.0)
    dot = ramp(dots + 0.9 * ramp(tone, 0.7, 0.2), 0.7, 1.2) * ramp(tone, 0.8, 0.6)
    colour = mix(colour, colour * np.array([0.45, 0.4, 0.6], np.float32), dot)
    line = dark_lines(raw, 1.7, 30)
    return as_bytes(shaded(colour, 1 - line))


def ukiyo_e(picture: Image) -> Image:
    """Woodblock print: flat blocks, indigo to cream, reds kept; waves in dark ones, wood in pale ones."""
    source = unit(picture)
    flat = blur(smooth(source), 1.8)
    tone = lifted(luma(flat), 0.6)
    distance = border_distance(tone_labels(tone, 4))
    level = soft_levels(tone, 4, 10)
    printed = palette(
        level, [(0, (24, 38, 82)), (0.34, (58, 96, 136)), (0.67, (198, 190, 150)), (1, (248, 236, 206))]
    )
    red = np.clip((flat[..., 0] - np.maximum(flat[..., 1], flat[..., 2])) * 3.5, 0, 1)
    vermilion = palette(level, [(0, (110, 30, 30)), (0.5, (196, 72, 48)), (1, (240, 150, 110))])
    printed = mix(printed, vermilion, red)
    waves = ramp(np.cos((distance - 6) * (2 * np.pi / 8)), -0.1, 0.5)
    waves = waves * ramp(distance, 2.5, 4) * ramp(distance, 34, 26)
    pale, palest = ramp(level, 0.4, 0.6), ramp(level, 0.7, 0.9)
    printed = mix(printed, (236, 226, 198), 0.85 * waves * (1 - pale))
    cuts = ramp(hatching(luma(source), -70, 9.0, 10.0), 0.0, 0.6) * pale * (1 - palest)
    printed = mix(printed, (246, 232, 200), 0.6 * cuts)
    wood = ramp(hatching(luma(source), 0, 9.0, 14.0), 0.2, 0.8) * palest
    printed = mix(printed, (150, 120, 90), 0.5 * wood)
    line = np.maximum(firmness(luma(flat)) * ramp(distance, 1.8, 0.6), dark_lines(luma(source), 1.3, 24))
    return as_bytes(mix(printed, (22, 22, 40), 0.95 * line))


def blueprint(picture: Image) -> Image:
    """A plan: walls of two white lines around every part, hatched where it is dark, on blue paper."""
    source = unit(picture)
    tone = luma(source)
    flat = blur(luma(smooth(source)), 1.8)
    level = lifted(flat, 0.8)
    distance = border_distance(tone_labels(level, 3))
    wall = ramp(np.abs(distance - 3.0), 1.4, 0.6)
    hatch = ramp(hatching(tone, -45, 8.0, 10.0), 0.3, 0.9) * ramp(level, 0.7, 0.45) * ramp(distance, 4, 6)
    edge = dark_lines(1 - tone, 1.5, 26)
    paper = palette(level, [(0, (8, 28, 92)), (1, (70, 124, 200))])
    line = np.clip(np.maximum(wall, np.maximum(edge, 0.75 * hatch)), 0, 1)
    return as_bytes(mix(paper, (238, 246, 255), line))
