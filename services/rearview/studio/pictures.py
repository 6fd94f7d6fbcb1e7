"""A camera's frames as the JPEGs that a session takes, and pictures as the video that watchers see.

A watcher sees what a viewer's page would draw: the tiles on program, by their shares. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import simplejpeg
from av import VideoFrame

from rearview.client.wire import encode_jpeg

__all__ = ["Part", "Picture", "Screen", "blended", "contained", "jpeg_of", "mixed", "shares"]

QUALITY = 90
"""Of a camera's frames on their way to the session."""

Picture = np.ndarray[Any, np.dtype[np.uint8]]
"""(height, width, 3), RGB."""
Part = tuple[bytes, float]
"""A JPEG, and how much of it is seen."""


def jpeg_of(frame: VideoFrame, width: int, height: int) -> bytes:
    """The middle of a frame, as large as fits the shape, as a JPEG of that size in pixels and of at most
    1 MiB.
    """
    scale = max(width / frame.width, height / frame.height)
    wide, high = max(width, ceil(frame.width * scale)), max(height, ceil(frame.height * scale))
    scaled = frame.reformat(width=wide, height=high, format="rgb24").to_ndarray()
    left, top = (wide - width) // 2, (high - height) // 2
    return encode_jpeg(scaled[top : top + height, left : left + width], QUALITY)


def shares(program: Mapping[str, Any], elapsed_s: float) -> dict[int, float]:
    """Of the tiles on program, so long after `program` was said: how much of each is seen. They sum to 1."""
    start, fade_ms = program.get("start"), program.get("fade_ms") or 0
    done = min(1.0, max(0.0, 1000 * elapsed_s / fade_ms)) if start is not None and fade_ms else 1.0
    found: dict[int, float] = {}
    for share, mixed in ((1.0 - done, start or {}), (done, program)):
        a, b, mix = mixed.get("a"), mixed.get("b"), mixed.get("mix") or 0.0
        for tile, part in ((a, 1.0 - mix if b is not None else 1.0), (b, mix)):
            if tile is not None and part * share > 0.0:
                found[tile] = found.get(tile, 0.0) + part * share
    return found


def mixed(parts: Sequence[Part]) -> Picture:
    """JPEGs by their shares, as large as the first of them. Raises ValueError for what is no JPEG."""
    sum_of: np.ndarray[Any, np.dtype[np.float32]] | None = None
    total = sum(share for _, share in parts)
    for jpeg, share in parts:
        picture: Picture = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
        if len(parts) == 1:
            return picture
        if sum_of is None:
            sum_of = np.zeros(picture.shape, np.float32)
        elif sum_of.shape != picture.shape:
            picture = _scaled(picture, sum_of.shape[1], sum_of.shape[0])
        sum_of += picture * np.float32(share / total)
    assert sum_of is not None, "no tile is on program"
    whole: Picture = (sum_of + 0.5).astype(np.uint8)
    return whole


def blended(parts: Sequence[Part]) -> VideoFrame:
    """The same as a frame of video."""
    return VideoFrame.from_ndarray(mixed(parts), format="rgb24").reformat(format="yuv420p")


def contained(picture: Picture, width: int, height: int) -> Picture:
    """A picture whole in the middle of one of that size in pixels, as large as it fits, on black."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    wide, high = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    left, top = (width - wide) // 2, (height - high) // 2
    whole: Picture = np.zeros((height, width, 3), np.uint8)
    whole[top : top + high, left : left + wide] = _scaled(picture, wide, high)
    return whole


class Screen:
    """What one watcher sees. `now` in seconds."""

    def __init__(self) -> None:
        self._program: Mapping[str, Any] = {}
        self._said_s = 0.0
        self._pictures: dict[int, bytes] = {}

    def turn_to(self, program: Mapping[str, Any], now: float) -> None:
        """The program changes, as its message says."""
        self._program, self._said_s = program, now

    def show(self, tile: int, jpeg: bytes) -> None:
        """The tile's newest picture."""
        self._pictures[tile] = jpeg

    def parts(self, now: float) -> list[Part]:
        """The pictures that are seen; empty: none has come yet."""
        found = shares(self._program, now - self._said_s)
        return [(self._pictures[tile], share) for tile, share in found.items() if tile in self._pictures]


def _scaled(picture: Picture, width: int, height: int) -> Picture:
    frame = VideoFrame.from_ndarray(picture, format="rgb24")
    scaled: Picture = frame.reformat(width=width, height=height).to_ndarray()
    return scaled
