"""Writes the image files beside this script: a few good ones and many hostile ones.

Run it after a change: `python tests/ingress/images/make_images.py`. Sessions in the tests are 64 by 64.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

SIDE = 64
SCANS = 200
HERE = Path(__file__).parent


def picture(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Smooth colours with some noise, (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([x * 255 // width, y * 255 // height, (x + y) * 127 // (width + height)], axis=-1)
    noise = np.random.default_rng(7).integers(0, 24, planes.shape)
    return np.clip(planes + noise, 0, 255).astype(np.uint8)


def pillow(mode: str, **options: object) -> bytes:
    """A file that only Pillow makes here: other colour spaces, progressive, PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, **{"format": "JPEG", "quality": 80, **options})
    return buffer.getvalue()


def frame_header(data: bytes) -> tuple[int, int]:
    """Start and end of the SOF0 segment, its marker included."""
    start = data.index(b"\xff\xc0")
    return start, start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")


def with_size(data: bytes, width: int, height: int) -> bytes:
    """The same file claiming another size."""
    start, _ = frame_header(data)
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return data[: start + 5] + size + data[start + 9 :]


def with_marker(data: bytes, code: int) -> bytes:
    """The same file claiming another coding process."""
    start, _ = frame_header(data)
    return data[:start] + bytes((0xFF, code)) + data[start + 2 :]


def segment(code: int, body: bytes) -> bytes:
    """A marker segment with its length."""
    return bytes((0xFF, code)) + (len(body) + 2).to_bytes(2, "big") + body


def many_scans(scans: int) -> bytes:
    """A sequential file that codes its first component `scans` times: much work in few bytes.

    One-bit Huffman codes for "no difference" and "end of block" make a block two bits.
    """
    one_symbol = bytes((1, *[0] * 15, 0))
    tables = segment(0xC4, b"\x00" + one_symbol) + segment(0xC4, b"\x10" + one_symbol)
    quantisers = segment(0xDB, b"\x00" + bytes([16] * 64))
    size = SIDE.to_bytes(2, "big") * 2
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    frame = segment(0xC0, b"\x08" + size + b"\x03" + components)
    blocks = bytes((SIDE // 8) ** 2 * 2 // 8)
    order = [1] * (scans - 2) + [2, 3]
    body = b"".join(segment(0xDA, bytes((1, number, 0, 0, 63, 0))) + blocks for number in order)
    return b"\xff\xd8" + quantisers + tables + frame + body + b"\xff\xd9"


def files() -> dict[str, bytes]:
    """Name → content."""
    good = simplejpeg.encode_jpeg(picture(), 80, "RGB", "420")
    start, end = frame_header(good)
    return {
        "good.jpg": good,
        "good_separate_scans.jpg": many_scans(3),
        "good_grey.jpg": pillow("L"),
        "empty.jpg": b"",
        "truncated.jpg": good[: len(good) // 2],
        "truncated_header.jpg": good[: start + 6],
        "damaged_data.jpg": good[: len(good) * 2 // 3] + good[-2:],
        "progressive.jpg": pillow("RGB", progressive=True),
        "arithmetic.jpg": with_marker(good, 0xC9),
        "lossless.jpg": with_marker(good, 0xC3),
        "many_scans.jpg": many_scans(SCANS),
        "claims_65500.jpg": with_size(good, 65500, 65500),
        "claims_12000.jpg": with_size(good, 12000, 12000),
        "claims_zero.jpg": with_size(good, 64, 0),
        "other_size.jpg": simplejpeg.encode_jpeg(picture(48, 80), 80, "RGB", "420"),
        "two_frame_headers.jpg": good[:end] + good[start:end] + good[end:],
        "cmyk.jpg": pillow("CMYK"),
        "png.jpg": pillow("RGB", format="PNG"),
        "not_an_image.jpg": b"%PDF-1.7\nnot an image at all\n" * 8,
    }


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_bytes(content)
