"""The classical filters that serve as teachers: one deterministic function of the picture per style.

No filter draws random texture, because a mean-seeking loss erases it; every filter changes the palette or
the line structure strongly, so that styles stay apart after training. All lengths are in pixels of the
picture given.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from rearview_lab.data.photos import Image

Float = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
PIXEL_ART_TILE = 8  # pixels; equals the reduction of the autoencoder, so that tiles sit on the latent grid


def _unit(picture: Image) -> Float:
    return np.asarray(picture / np.float32(255), dtype=np.float32)


def _bytes(picture: Float) -> Image:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _luma(picture: Float) -> Float:
    return np.asarray(picture @ _LUMA, dtype=np.float32)


def _blur(field: Float, sigma: float) -> Float:
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), dtype=np.float32)


def _saturate(picture: Float, factor: float) -> Float:
    grey = _luma(picture)[..., None]
    return np.asarray(grey + (picture - grey) * factor, dtype=np.float32)


def _palette(level: Float, stops: list[tuple[float, tuple[int, int, int]]]) -> Float:
    """Map 0..1 onto colours interpolated between the stops."""
    positions = [position for position, _ in stops]
    channels = [np.interp(level, positions, [colour[i] / 255 for _, colour in stops]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _soft_levels(level: Float, count: int, sharpness: float) -> Float:
    """Posterise 0..1 to ``count`` levels with a smooth step of the given sharpness between them."""
    scaled = level * (count - 1)
    base = np.floor(scaled)
    step = 1 / (1 + np.exp(-(scaled - base - 0.5) * sharpness))
    return np.asarray((base + step) / (count - 1), dtype=np.float32)


def _ink(luma: Float, sigma: float, gain: float) -> Float:
    """Line strength 0..1: 1 on a dark line or on the dark side of an edge (difference of Gaussians)."""
    difference = _blur(luma, sigma * 1.8) - _blur(luma, sigma)
    return np.asarray(np.clip((difference - 0.008) * gain, 0, 1), dtype=np.float32)


def _gradient(luma: Float) -> tuple[Float, Float]:
    sixteenth = luma / np.float32(16)
    across = np.asarray(cv2.Scharr(sixteenth, cv2.CV_32F, 1, 0), dtype=np.float32)
    down = np.asarray(cv2.Scharr(sixteenth, cv2.CV_32F, 0, 1), dtype=np.float32)
    return across, down


def _kuwahara(picture: Float, radius: int) -> Float:
    """Each pixel takes the mean of its least varying quadrant: flat patches with kept edges."""
    side = radius + 1
    means, spreads = [], []
    luma = _luma(picture)
    for anchor in ((0, 0), (radius, 0), (0, radius), (radius, radius)):
        mean = cv2.boxFilter(picture, -1, (side, side), anchor=anchor, borderType=cv2.BORDER_REFLECT_101)
        first = cv2.boxFilter(luma, -1, (side, side), anchor=anchor, borderType=cv2.BORDER_REFLECT_101)
        second = cv2.boxFilter(
            luma * luma, -1, (side, side), anchor=anchor, borderType=cv2.BORDER_REFLECT_101
        )
        means.append(mean)
        spreads.append(second - first * first)
    best = np.argmin(np.stack(spreads), axis=0)
    return np.asarray(np.take_along_axis(np.stack(means), best[None, ..., None], axis=0)[0], dtype=np.float32)


def _strokes(picture: Float, length: int) -> Float:
    """Smear the picture along the local contour direction, which draws long brush strokes."""
    across, down = _gradient(_blur(_luma(picture), 1.0))
    xx, yy, xy = _blur(across * across, 3.0), _blur(down * down, 3.0), _blur(across * down, 3.0)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    step_x, step_y = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    rows, columns = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]].astype(np.float32)
    total = np.zeros_like(picture)
    for offset in range(-length, length + 1):
        moved = cv2.remap(
            picture,
            columns + step_x * offset,
            rows + step_y * offset,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        total += np.asarray(moved)
    return np.asarray(total / (2 * length + 1), dtype=np.float32)


def _relief(luma: Float, amount: float) -> Float:
    """Light from the upper left on the luminance taken as height."""
    across, down = _gradient(luma)
    return np.asarray(np.clip((across + down) * amount, -0.25, 0.25), dtype=np.float32)


def natural(picture: Image) -> Image:
    """The picture itself."""
    return picture.copy()


def pencil(picture: Image) -> Image:
    """Dodge shading and dark lines on warm paper."""
    luma = _luma(_unit(picture))
    dodge = np.clip(luma / (_blur(luma, 7.0) + 0.03), 0, 1)
    tone = 0.72 + 0.28 * np.clip(luma * 1.6, 0, 1)
    line = 1 - 0.92 * _ink(luma, 1.0, 22)
    level = np.clip(dodge**1.6 * tone * line, 0, 1).astype(np.float32)
    return _bytes(_palette(level, [(0, (38, 38, 44)), (1, (250, 247, 240))]))


def oil(picture: Image) -> Image:
    """Long strokes along the contours in the golden browns of an old varnished canvas, with relief.

    Shadows are lifted to brown, so that the varnish shows in a dark scene too.
    """
    painted = _strokes(_kuwahara(_kuwahara(_unit(picture), 2), 2), 5)
    luma = np.clip(_luma(painted), 0, 1)
    level = np.asarray(luma**0.7, dtype=np.float32)
    varnish = _palette(
        level, [(0, (78, 42, 14)), (0.3, (128, 72, 24)), (0.65, (208, 150, 58)), (1, (255, 240, 184))]
    )
    colour = _saturate(painted * (0.9 * (level + 0.04) / (luma + 0.04))[..., None], 1.9)
    relief = _relief(_blur(np.asarray(luma**0.6, dtype=np.float32), 0.8), 3.0)
    return _bytes(0.33 * np.clip(colour, 0, 1) + 0.67 * varnish + relief[..., None])


def watercolor(picture: Image) -> Image:
    """Clear washes that pool into dark wet edges: lights stay white paper, shadows turn ultramarine."""
    smooth = _kuwahara(np.asarray(cv2.bilateralFilter(_unit(picture), 7, 0.15, 4), dtype=np.float32), 3)
    luma = np.clip(_luma(smooth), 0, 1)
    across, down = _gradient(_blur(luma, 1.4))
    edge = np.clip(np.hypot(across, down) * 7 - 0.2, 0, 1)
    tone = np.asarray(luma**0.7, dtype=np.float32)
    pigment = _palette(
        tone, [(0, (28, 58, 150)), (0.45, (96, 150, 206)), (0.8, (252, 250, 240)), (1, (255, 255, 252))]
    )
    clear = np.clip(_saturate(smooth * ((tone + 0.1) / (luma + 0.1))[..., None], 2.2), 0, 1)
    wash = 0.2 + 0.8 * (0.55 * clear + 0.45 * pigment)
    return _bytes(np.asarray(wash * (1 - 0.55 * edge[..., None]), dtype=np.float32))


def clay(picture: Image) -> Image:
    """Rounded lumps of plasticine: four levels from mauve shadows to cream, with strong relief.

    Shadows are lifted to mauve, so that the material shows in a dark scene too.
    """
    flat = _blur(_kuwahara(_kuwahara(_unit(picture), 3), 2), 1.1)
    luma = np.clip(_luma(flat), 0, 1)
    tone = np.asarray(luma**0.6, dtype=np.float32)
    level = _soft_levels(tone, 4, 8)
    fill = _palette(
        level, [(0, (96, 80, 138)), (0.4, (178, 96, 104)), (0.75, (242, 172, 134)), (1, (255, 238, 214))]
    )
    shaped = _saturate(flat * ((level + 0.1) / (luma + 0.1))[..., None], 1.6)
    return _bytes(0.42 * np.clip(shaped, 0, 1) + 0.58 * fill + _relief(_blur(tone, 1.9), 9.0)[..., None])


def neon(picture: Image) -> Image:
    """Glowing edges coloured by their direction on a dark violet ground."""
    luma = _blur(_luma(_unit(picture)), 1.2)
    across, down = _gradient(luma)
    strength = np.clip(np.hypot(across, down) * 10 - 0.15, 0, 1).astype(np.float32)
    turn = np.cos(2 * np.arctan2(down, across))[..., None].astype(np.float32)
    cyan, pink = np.array([0.1, 0.95, 1.0], np.float32), np.array([1.0, 0.15, 0.85], np.float32)
    colour = (cyan + pink) / 2 + turn * (pink - cyan) / 2
    lines = colour * strength[..., None]
    ground = np.array([0.09, 0.03, 0.2], np.float32) + 0.16 * luma[..., None] * np.array(
        [0.5, 0.15, 1.0], np.float32
    )
    core = np.clip(strength - 0.7, 0, 1)[..., None] * 0.8
    return _bytes(ground + lines + 0.8 * _blur(lines, 3.0) + core)


def cartoon(picture: Image) -> Image:
    """Bright flat colours in four luminance levels inside bold black outlines; no shadow is dark."""
    smooth = np.asarray(cv2.bilateralFilter(_unit(picture), 9, 0.22, 5), dtype=np.float32)
    luma = _luma(smooth)
    level = 0.2 + 0.8 * _soft_levels(np.clip(luma, 0, 1) ** 0.65, 4, 10)
    flat = _saturate(smooth * ((level + 0.1) / (luma + 0.1))[..., None], 1.75)
    line = np.clip(_ink(_luma(_unit(picture)), 1.5, 26), 0, 1)[..., None]
    return _bytes(np.clip(flat, 0, 1) * (1 - line))


def ukiyo_e(picture: Image) -> Image:
    """Woodblock print: indigo to cream in four levels, reds kept, ink outlines."""
    smooth = np.asarray(cv2.bilateralFilter(_unit(picture), 7, 0.2, 4), dtype=np.float32)
    level = _soft_levels(_luma(smooth), 4, 10)
    stops = [(0.0, (24, 38, 82)), (0.34, (58, 96, 136)), (0.67, (190, 186, 150)), (1.0, (246, 232, 200))]
    printed = _palette(level, stops)
    redness = np.clip((smooth[..., 0] - np.maximum(smooth[..., 1], smooth[..., 2])) * 3.5, 0, 1)[..., None]
    vermilion = _palette(level, [(0.0, (110, 30, 30)), (0.5, (196, 72, 48)), (1.0, (240, 150, 110))])
    printed = printed + (vermilion - printed) * redness
    return _bytes(printed * (1 - 0.85 * _ink(_luma(_unit(picture)), 1.1, 20)[..., None]))


def cyberpunk(picture: Image) -> Image:
    """Violet, magenta and cyan by luminance, with bloom."""
    unit = _unit(picture)
    luma = _luma(unit)
    level = np.clip((luma - 0.5) * 1.2 + 0.5, 0, 1).astype(np.float32)
    stops = [
        (0.0, (10, 4, 34)),
        (0.3, (74, 14, 116)),
        (0.55, (214, 36, 152)),
        (0.8, (70, 190, 240)),
        (1.0, (200, 255, 255)),
    ]
    graded = 0.8 * _palette(level, stops) + 0.2 * unit
    bloom = _blur(np.clip(graded - 0.6, 0, 1), 5.0)
    return _bytes(graded + 0.7 * bloom)


def blueprint(picture: Image) -> Image:
    """White construction lines on blue paper."""
    luma = _blur(_luma(_unit(picture)), 1.1)
    across, down = _gradient(luma)
    line = np.clip(np.hypot(across, down) * 9 - 0.12, 0, 1)
    paper = _palette(luma, [(0, (12, 40, 110)), (1, (52, 104, 182))])
    return _bytes(
        np.asarray(paper + (np.array([0.93, 0.97, 1.0]) - paper) * line[..., None], dtype=np.float32)
    )


def pixel_art(picture: Image) -> Image:
    """Tiles of eight pixels in a reduced, saturated palette with a thin dark grid."""
    unit = _unit(picture)
    height, width = unit.shape[:2]
    tile = PIXEL_ART_TILE
    small = cv2.resize(unit, (-(-width // tile), -(-height // tile)), interpolation=cv2.INTER_AREA)
    reduced = _soft_levels(np.clip(_saturate(np.asarray(small, dtype=np.float32), 1.5), 0, 1), 5, 11)
    tiles = np.kron(reduced, np.ones((tile, tile, 1), np.float32))[:height, :width]
    shade = np.ones((tile, tile), np.float32)
    shade[0, :] = shade[:, 0] = 1.1
    shade[-1, :] = shade[:, -1] = 0.68
    grid = np.tile(shade, (-(-height // tile), -(-width // tile)))[:height, :width]
    return _bytes(np.asarray(tiles * grid[..., None], dtype=np.float32))


FILTERS: dict[str, Callable[[Image], Image]] = {
    "natural": natural,
    "pencil": pencil,
    "oil": oil,
    "watercolor": watercolor,
    "clay": clay,
    "neon": neon,
    "cartoon": cartoon,
    "ukiyo-e": ukiyo_e,
    "cyberpunk": cyberpunk,
    "blueprint": blueprint,
    "pixel-art": pixel_art,
}
STYLES = tuple(FILTERS)
# How often training draws a style, where not once: lines and relief are learned last, and in the natural
# style and in washes every lost detail shows.
SHARES = {
    "natural": 2.5,
    "watercolor": 2.0,
    "oil": 1.8,
    **dict.fromkeys(("pencil", "clay", "neon", "cartoon", "ukiyo-e", "blueprint"), 1.4),
}
