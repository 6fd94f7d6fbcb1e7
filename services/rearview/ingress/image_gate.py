"""What may go to the JPEG decoder: a walk over the file's markers, before a single pixel is decoded.

Decoders trust a file about its size and its number of passes: 3 kB can ask for 65500 by 65500 pixels,
and 60 kB of progressive scans cost a second of CPU. So only a Huffman-coded sequential JPEG of exactly the
session's size passes, with no more scans than components. The bytes decide what a file is, never the
client's word, and the walk takes a bounded number of steps. Damage inside the entropy-coded data is left
to the strict decoder.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from rearview.config import LimitsConfig
from rearview.contract.controls import MAX_CONTROLS
from rearview.contract.stream import ImageFormat
from rearview.errors import DropReason
from rearview.ingress.intake import ControlIn, FrameIn

__all__ = ["check_frame", "check_image", "check_jpeg"]

_MAX_SEGMENTS = 256
"""Before the first scan. Cameras write up to 40; without a bound 1 MiB of empty ones takes 0.2 s to walk."""
_MAX_FILL_BYTES = 16
"""0xFF bytes before a marker."""

_SOS, _DAC = 0xDA, 0xCC
_NO_SEGMENT = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # not a marker, TEM, restarts, SOI, EOI
_DHT, _JPG = 0xC4, 0xC8
_SOF = frozenset(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_SEQUENTIAL_HUFFMAN = frozenset({0xC0, 0xC1})
_SAMPLE_BITS = 8


def check_image(
    data: bytes, format: ImageFormat, width: int, height: int, limits: LimitsConfig
) -> DropReason | None:
    """Why the image of a session of `width` by `height` pixels cannot be taken; None if it can.

    Never raises, whatever `data` is. Takes tens of microseconds.
    """
    if not data:
        return DropReason.IMAGE_EMPTY
    if format is ImageFormat.RGB:
        return None if len(data) == width * height * 3 else DropReason.IMAGE_SIZE_MISMATCH
    if len(data) > limits.max_image_bytes:
        return DropReason.IMAGE_TOO_LARGE
    if format is ImageFormat.OPAQUE:
        return None
    return check_jpeg(data, limits.max_pixels, (width, height))


def check_frame(
    frame: FrameIn, width: int, height: int, limits: LimitsConfig, controls: Set[str]
) -> DropReason | None:
    """The same of a frame's image and of what came with it for its controls, of which there are these."""
    refusal = check_image(frame.image, frame.format, width, height, limits)
    if refusal is not None or not frame.controls:
        return refusal
    return _check_shown(frame.controls, controls, width, height, limits)


def _check_shown(
    sent: Sequence[ControlIn], known: Set[str], width: int, height: int, limits: LimitsConfig
) -> DropReason | None:
    names = {one.name for one in sent}
    if len(sent) > MAX_CONTROLS or len(names) < len(sent):
        return DropReason.CONTROLS_TOO_MANY
    if not known >= names:
        return DropReason.CONTROL_UNKNOWN
    for one in sent:
        if one.format is None or one.format is ImageFormat.OPAQUE:
            return DropReason.CONTROL_INVALID
        reason = check_image(one.image, one.format, width, height, limits)
        if reason is not None:
            is_size = reason is DropReason.IMAGE_SIZE_MISMATCH
            return DropReason.CONTROL_SIZE_MISMATCH if is_size else DropReason.CONTROL_INVALID
    return None


def check_jpeg(data: bytes, max_pixels: int, size: tuple[int, int] | None = None) -> DropReason | None:
    """The same of a JPEG. `size`: the width and height that it must have; None: any."""
    header = _walk(data)
    if isinstance(header, DropReason):
        return header
    if header.width * header.height > max_pixels:
        return DropReason.IMAGE_TOO_LARGE
    if size is not None and (header.width, header.height) != size:
        return DropReason.IMAGE_SIZE_MISMATCH
    # In entropy-coded data 0xFF is never followed by these, so counting bytes finds every further scan.
    # Too many are counted at worst (in a table between scans), never too few.
    scans = 1 + data.count(b"\xff\xda", header.scan_offset)
    if scans > header.num_components or data.rfind(b"\xff\xd9", header.scan_offset) < 0:
        return DropReason.IMAGE_INVALID
    return None


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    num_components: int
    scan_offset: int
    """Of the first byte after the header of the first scan."""


def _walk(data: bytes) -> _Header | DropReason:
    """Follow the segments from SOI to the first SOS. The header, or why there is none to take."""
    if data[:2] != b"\xff\xd8":
        return DropReason.IMAGE_INVALID
    frame: bytes | None = None
    offset = 2
    for _ in range(_MAX_SEGMENTS):
        marker, offset = _next_marker(data, offset)
        length = int.from_bytes(data[offset : offset + 2], "big")
        if marker in _NO_SEGMENT or length < 2 or offset + length > len(data):
            return DropReason.IMAGE_INVALID
        segment = data[offset + 2 : offset + length]
        offset += length
        if marker == _DAC or (marker in _SOF and marker not in _SEQUENTIAL_HUFFMAN):
            return DropReason.IMAGE_NOT_BASELINE
        if marker in _SOF:
            if frame is not None:
                return DropReason.IMAGE_INVALID
            frame = segment
        elif marker == _SOS:
            return DropReason.IMAGE_INVALID if frame is None else _read_frame(frame, offset)
    return DropReason.IMAGE_INVALID


def _next_marker(data: bytes, offset: int) -> tuple[int, int]:
    """The marker code at `offset` and the offset behind it; code 0 if there is no marker."""
    start = data[offset : offset + _MAX_FILL_BYTES + 2]
    code = start.lstrip(b"\xff")[:1]
    if start[:1] != b"\xff" or not code:
        return 0, offset
    return code[0], offset + start.index(code) + 1


def _read_frame(segment: bytes, scan_offset: int) -> _Header | DropReason:
    """Read a SOF segment: precision, height, width, components with three bytes each."""
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        return DropReason.IMAGE_INVALID
    if segment[0] != _SAMPLE_BITS:
        return DropReason.IMAGE_NOT_BASELINE
    height = int.from_bytes(segment[1:3], "big")
    width = int.from_bytes(segment[3:5], "big")
    if segment[5] not in (1, 3) or not width or not height:
        return DropReason.IMAGE_INVALID
    return _Header(width, height, segment[5], scan_offset)
