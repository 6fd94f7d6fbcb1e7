"""Image bytes ⇄ arrays, with simplejpeg. Call `image_gate.check_image` first.

Blocking (about a millisecond for 512 by 512) and without shared state: run it in a thread pool; simplejpeg
releases the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from rearview.contract.stream import ImageFormat
from rearview.errors import DropReason

__all__ = ["BadImage", "decode_image", "encode_image"]


class BadImage(ValueError):
    """The image cannot be decoded. An outcome of the frame, not a fault; `reason` answers the client."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.name)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return BadImage, (self.reason,)


def decode_image(data: bytes, format: ImageFormat, width: int, height: int) -> NDArray[np.uint8]:
    """Pixels (height, width, 3), RGB, uint8, writable and contiguous. A grey JPEG comes out as RGB.

    Raises BadImage: IMAGE_INVALID for damage, IMAGE_SIZE_MISMATCH for another size. OPAQUE is never
    decoded.
    """
    assert format is not ImageFormat.OPAQUE, "opaque bytes are not an image"
    if format is ImageFormat.RGB:
        if len(data) != width * height * 3:
            raise BadImage(DropReason.IMAGE_SIZE_MISMATCH)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3).copy()
    buffer = np.empty((height, width, 3), np.uint8)  # given, so that no file can ask for more
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True, buffer=buffer)
    except ValueError:
        raise BadImage(DropReason.IMAGE_INVALID) from None
    if pixels.shape != (height, width, 3):
        raise BadImage(DropReason.IMAGE_SIZE_MISMATCH)
    return pixels


def encode_image(array: NDArray[np.uint8], format: ImageFormat, quality: int = 85) -> bytes:
    """`array` (H, W, 3) uint8 RGB as baseline JPEG (4:2:0, `quality` 1–100) or as raw RGB bytes."""
    assert format is not ImageFormat.OPAQUE, "opaque bytes are not an image"
    assert array.dtype == np.uint8, f"dtype is {array.dtype}"
    assert array.ndim == 3, f"shape is {array.shape}"
    assert array.shape[2] == 3, f"shape is {array.shape}"
    pixels = np.ascontiguousarray(array)
    if format is ImageFormat.RGB:
        return pixels.tobytes()
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
    return encoded
