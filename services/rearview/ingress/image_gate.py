"""What may go to the JPEG decoder: a walk over the file's markers, before a single pixel is decoded.

Decoders trust a file about its size and its number of passes: 3 kB can ask for 65500 by 65500 pixels,
and 60 kB of progressive scans cost a second of CPU. So only a Huffman-coded sequential JPEG of exactly the
session's size passes, with no more scans than components. The bytes decide what a file is, never the
client's word. Damage inside the entropy-coded data is left to the strict decoder.
"""

from __future__ import annotations

from enum import Enum

from rearview.config import LimitsConfig
from rearview.errors import DropReason

__all__ = ["ImageKind", "check_image"]

_SOI, _EOI, _SOS, _DAC, _TEM = 0xD8, 0xD9, 0xDA, 0xCC, 0x01
_RST = range(0xD0, 0xD8)
_DHT, _JPG = 0xC4, 0xC8
_SOF = frozenset(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_SEQUENTIAL_HUFFMAN = frozenset({0xC0, 0xC1})
_SAMPLE_BITS = 8


class ImageKind(Enum):
    """How image bytes are to be read; numbers are those of `rearview.v1.ImageFormat`."""

    JPEG = 1
    RGB = 2
    OPAQUE = 3


def check_image(
    data: bytes, format: ImageKind, width: int, height: int, limits: LimitsConfig
) -> DropReason | None:
    """Why the image of a session of `width` by `height` pixels cannot be taken; None if it can.

    Never raises, whatever `data` is. Takes microseconds.
    """
    if not data:
        return DropReason.IMAGE_EMPTY
    if format is ImageKind.RGB:
        return None if len(data) == width * height * 3 else DropReason.IMAGE_SIZE_MISMATCH
    if len(data) > limits.max_image_bytes:
        return DropReason.IMAGE_TOO_LARGE
    if format is ImageKind.OPAQUE:
        return None
    return _check_jpeg(data, width, height, limits.max_pixels)


def _check_jpeg(data: bytes, width: int, height: int, max_pixels: int) -> DropReason | None:
    raise NotImplementedError
