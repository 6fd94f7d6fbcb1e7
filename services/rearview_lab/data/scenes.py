"""Generated training scenes: photograph crops, dead leaves and simple portraits.

``make_scene(seed, index)`` depends on nothing but its arguments, so any number of workers produce the same
data set. Scenes come before styling and may be jittered freely; after styling nothing may be mirrored,
because several styles have a light direction.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from rearview_lab.data.photos import Image, photo_crop

Float = NDArray[np.float32]
Point = tuple[float, float]
Paint = Callable[..., None]  # (mask, colour, strength)
Place = Callable[[float, float], Point]  # head coordinates to pixels

SCENE_SIZE = 128  # pixels, both sides
SHARE_PHOTO = 0.42
SHARE_LEAVES = 0.28
_DRAW = 192  # portraits and leaves are drawn at 1.5x and area-reduced


def make_scene(seed: int, index: int, size: int = SCENE_SIZE) -> Image:
    """The scene of one index, ``(size, size, 3)`` RGB."""
    rng = np.random.default_rng([seed, index])
    kind = rng.random()
    if kind < SHARE_PHOTO:
        scene = photo_crop(rng, size)
    else:
        big = dead_leaves(rng) if kind < SHARE_PHOTO + SHARE_LEAVES else portrait(rng)
        scene = cv2.resize(big, (size, size), interpolation=cv2.INTER_AREA)
    return _jitter(rng, np.asarray(scene, dtype=np.uint8))


def random_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """A colour from a mix of skin, foliage, sky, grey and free hues; components 0..255."""
    kind = rng.random()
    if kind < 0.15:
        hue, saturation, value = rng.uniform(0.02, 0.1), rng.uniform(0.2, 0.6), rng.uniform(0.3, 1)
    elif kind < 0.3:
        hue, saturation, value = rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.8)
    elif kind < 0.45:
        hue, saturation, value = rng.uniform(0.52, 0.66), rng.uniform(0.1, 0.8), rng.uniform(0.3, 1)
    elif kind < 0.65:
        hue, saturation, value = rng.random(), rng.uniform(0, 0.1), rng.uniform(0, 1)
    else:
        hue, saturation, value = rng.random(), rng.uniform(0.2, 1), rng.uniform(0.1, 1)
    red, green, blue = colorsys.hsv_to_rgb(float(hue), float(saturation), float(value))
    return red * 255, green * 255, blue * 255


def noise_field(rng: np.random.Generator, size: int) -> Float:
    """1/f noise of random exponent, scaled to 0..1."""
    frequency = np.fft.rfftfreq(size)[None, :] ** 2 + np.fft.fftfreq(size)[:, None] ** 2
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * frequency ** (-rng.uniform(0.6, 2.2) / 2)
    field = np.fft.irfft2(spectrum, s=(size, size))
    low, high = np.percentile(field, (1, 99))
    return np.asarray(np.clip((field - low) / (high - low + 1e-6), 0, 1), dtype=np.float32)


def texture(rng: np.random.Generator, size: int) -> Float:
    """A square of colour 0..255: flat, noise, stripes, checkers or thresholded noise between two colours."""
    first = np.array(random_colour(rng), dtype=np.float32)
    kind = rng.random()
    if kind < 0.4:
        return np.broadcast_to(first, (size, size, 3)).copy()
    second = np.array(random_colour(rng), dtype=np.float32)
    if rng.random() < 0.5:
        second = first * float(rng.uniform(0.4, 0.9))
    if kind < 0.65:
        level = noise_field(rng, size)
    elif kind < 0.85:
        angle, pitch = rng.uniform(0, np.pi), rng.uniform(5, 28)
        rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
        wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * 2 * np.pi / pitch)
        if rng.random() < 0.35:
            wave = wave * np.sin((rows * np.cos(angle) - columns * np.sin(angle)) * 2 * np.pi / pitch)
        level = np.clip(wave * rng.uniform(1, 6) * 0.5 + 0.5, 0, 1).astype(np.float32)
    else:
        level = np.clip((noise_field(rng, size) - 0.5) * 8 + 0.5, 0, 1)
    blend: Float = first + (second - first) * level[..., None]
    return blend


def dead_leaves(rng: np.random.Generator) -> Image:
    """Occluding shapes with power-law radii, some shaded like balls, some with a soft cast shadow."""
    canvas = texture(rng, _DRAW)
    if rng.random() < 0.4:
        top, bottom = rng.uniform(0.5, 1.2, 2).tolist()
        canvas *= np.linspace(top, bottom, _DRAW).astype(np.float32)[:, None, None]
    for _ in range(int(np.exp(rng.uniform(np.log(4), np.log(50))))):
        radius = float(8 * (1 - rng.random() * 0.985) ** -0.62)
        radius = min(radius, 90.0)
        centre = rng.uniform(-10, _DRAW + 10, 2)
        mask = _shape_mask(rng, centre, radius)
        fill = texture(rng, _DRAW)
        if rng.random() < 0.4:
            fill *= _ball_shading(rng, centre, radius)[..., None]
        if rng.random() < 0.35:
            shift = np.array([[1, 0, rng.uniform(-8, 8)], [0, 1, rng.uniform(-2, 10)]])
            shadow = cv2.GaussianBlur(cv2.warpAffine(mask, shift, (_DRAW, _DRAW)), (0, 0), rng.uniform(1, 6))
            canvas *= 1 - 0.6 * np.asarray(shadow)[..., None]
        canvas += (fill - canvas) * mask[..., None]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _shape_mask(rng: np.random.Generator, centre: NDArray[np.float64], radius: float) -> Float:
    """Ellipse, polygon, wobbly closed curve or bar as an anti-aliased mask 0..1."""
    kind = rng.random()
    if kind < 0.3:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        spread = np.ones(40)
    elif kind < 0.55:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
        spread = rng.uniform(0.8, 1.2, angles.size)
    elif kind < 0.85:
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        spread = np.ones(64)
        for order in (2, 3, 5, 7):
            spread += rng.uniform(0, 0.28) * np.cos(order * angles + rng.uniform(0, 2 * np.pi)) / order**0.5
    else:
        angles, spread = np.array([0.15, np.pi - 0.15, np.pi + 0.15, -0.15]), np.full(4, 1.6)
    turn, squeeze = rng.uniform(0, np.pi), rng.uniform(0.45, 1)
    points = np.stack([np.cos(angles), np.sin(angles) * squeeze], 1) * spread[:, None] * radius
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return _fill(points @ rotation.T + centre)


def _fill(points: NDArray[np.float64]) -> Float:
    mask = np.zeros((_DRAW, _DRAW), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return np.asarray(mask / np.float32(255), dtype=np.float32)


def _ellipse(centre: Point, half_width: float, half_height: float, turn: float = 0.0) -> Float:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    points = np.stack([np.cos(angles) * half_width, np.sin(angles) * half_height], 1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return _fill(points @ rotation.T + np.array(centre))


def _ball_shading(rng: np.random.Generator, centre: NDArray[np.float64], radius: float) -> Float:
    """Brightness factor of a ball lit from a random side, with a small highlight."""
    rows, columns = np.mgrid[0:_DRAW, 0:_DRAW].astype(np.float32)
    light = rng.uniform(-0.6, 0.6, 2)
    across, down = (columns - centre[0]) / radius - light[0], (rows - centre[1]) / radius - light[1]
    distance = across**2 + down**2
    shade = np.clip(1.25 - 0.5 * distance, 0.25, 1.3)
    return np.asarray(shade + rng.uniform(0, 0.8) * np.exp(-distance * 14), dtype=np.float32)


def portrait(rng: np.random.Generator) -> Image:
    """A rough shaded head with hair, clothes and features before a plain, textured or cluttered ground."""
    if rng.random() < 0.45:
        canvas = cv2.GaussianBlur(dead_leaves(rng), (0, 0), rng.uniform(0.8, 7)).astype(np.float32)
    else:
        canvas = texture(rng, _DRAW)
    x, y = _DRAW / 2 + rng.uniform(-30, 30), _DRAW * 0.42 + rng.uniform(-22, 22)
    size = float(rng.uniform(22, 58))
    skin = _skin(rng)
    hair = np.array([random_colour(rng) if rng.random() < 0.2 else _hair(rng)], dtype=np.float32)[0]
    side = float(rng.uniform(-0.3, 0.3))  # where the face looks, in head half-widths
    lean = float(rng.uniform(-0.25, 0.25))

    def paint(mask: Float, colour: Float, strength: float = 1.0) -> None:
        canvas[:] = canvas + (colour - canvas) * (mask * strength)[..., None]

    def place(across: float, down: float) -> Point:
        return (
            x + size * (across * np.cos(lean) - down * np.sin(lean)),
            y + size * (across * np.sin(lean) + down * np.cos(lean)),
        )

    long_hair = rng.random() < 0.45
    paint(
        _ellipse(place(0, -0.1 + 0.35 * long_hair), size * 1.02, size * (1.25 + 0.5 * long_hair), lean),
        hair * 0.8,
    )
    neck = _ellipse(place(0, 1.2), size * 0.42, size * 0.8, lean)
    paint(neck, skin * 0.72)
    clothes = texture(rng, _DRAW)
    body = _ellipse(place(0, 3.0), size * rng.uniform(1.5, 2.2), size * rng.uniform(1.4, 1.7))
    paint(body, clothes)
    head = _ellipse(place(0, 0), size * 0.78, size * 1.05, lean)
    light = float(rng.uniform(-0.5, 0.5))
    rows, columns = np.mgrid[0:_DRAW, 0:_DRAW].astype(np.float32)
    shading = np.clip(
        1.05 - 0.38 * ((columns - x) / size - light) ** 2 - 0.12 * ((rows - y) / size), 0.35, 1.15
    )
    paint(head, skin * shading[..., None])
    if rng.random() < 0.25:
        paint(_ellipse(place(side * 0.5, 0.72), size * 0.62, size * 0.42, lean) * head, hair * 0.9, 0.8)
    _face(rng, paint, place, size, side, lean, skin)
    fringe = _ellipse(place(rng.uniform(-0.3, 0.3), -0.95), size * 0.85, size * rng.uniform(0.3, 0.55), lean)
    paint(fringe, hair * (0.75 + 0.35 * noise_field(rng, _DRAW))[..., None])
    return np.asarray(np.clip(canvas, 0, 255), dtype=np.uint8)


def _face(
    rng: np.random.Generator, paint: Paint, place: Place, size: float, side: float, lean: float, skin: Float
) -> None:
    """Eyes, brows, nose, mouth and sometimes glasses, painted onto the head."""
    white, dark = np.full(3, 235.0, np.float32), np.full(3, 28.0, np.float32)
    glasses = rng.random() < 0.25
    for sign in (-1, 1):
        across = side + sign * 0.33
        if rng.random() < 0.85:
            paint(_ellipse(place(across, -0.12), size * 0.17, size * 0.08, lean), white)
        paint(_ellipse(place(across + side * 0.15, -0.12), size * 0.075, size * 0.078, lean), dark)
        paint(_ellipse(place(across, -0.32), size * 0.2, size * 0.05, lean), skin * 0.35, 0.8)
        if glasses:
            ring = _ellipse(place(across, -0.1), size * 0.29, size * 0.24, lean)
            hole = _ellipse(place(across, -0.1), size * 0.24, size * 0.19, lean)
            paint(ring * (1 - hole), dark)
    paint(_ellipse(place(side * 1.3 + 0.08, 0.18), size * 0.1, size * 0.26, lean), skin * 0.75, 0.6)
    paint(_ellipse(place(side * 1.4, 0.36), size * 0.15, size * 0.06, lean), skin * 0.55, 0.7)
    lips = np.array([170, 60, 60], np.float32) * float(rng.uniform(0.5, 1.1))
    width, height = size * float(rng.uniform(0.2, 0.36)), size * float(rng.uniform(0.05, 0.13))
    paint(_ellipse(place(side, 0.62), width, height, lean), lips)
    if rng.random() < 0.5:
        paint(_ellipse(place(side, 0.61), width * 0.8, height * 0.5, lean), white, 0.9)


def _skin(rng: np.random.Generator) -> Float:
    tone = float(rng.random())
    light, deep = np.array([246, 208, 184]), np.array([96, 62, 44])
    return np.asarray((light + (deep - light) * tone) * rng.uniform(0.85, 1.05), dtype=np.float32)


def _hair(rng: np.random.Generator) -> tuple[float, float, float]:
    tones = ((28, 24, 22), (70, 45, 30), (120, 75, 40), (200, 160, 95), (150, 60, 30), (170, 170, 170))
    red, green, blue = tones[int(rng.integers(len(tones)))]
    return float(red), float(green), float(blue)


def _jitter(rng: np.random.Generator, scene: Image) -> Image:
    """Hue, saturation and gamma jitter on most scenes; slight blur and noise on some."""
    if rng.random() < 0.7:
        hsv = cv2.cvtColor(scene, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (
            hsv[..., 0] + (rng.uniform(-90, 90) if rng.random() < 0.25 else rng.uniform(-8, 8))
        ) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.5, 1.5), 0, 255)
        hsv[..., 2] = 255 * np.clip(hsv[..., 2] / 255 * rng.uniform(0.8, 1.15), 0, 1) ** rng.uniform(0.7, 1.4)
        scene = np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), dtype=np.uint8)
    if rng.random() < 0.15:
        scene = np.asarray(cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.4, 1.2)), dtype=np.uint8)
    if rng.random() < 0.25:
        noisy = scene + rng.normal(0, rng.uniform(1, 5), scene.shape)
        scene = np.clip(noisy, 0, 255).astype(np.uint8)
    return scene
