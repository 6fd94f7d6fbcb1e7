"""What may go into settings as a reference image or its mask: it is decoded once, before any replica has it.

As with frames, the bytes are looked at before a pixel is decoded: a few kilobytes can ask for a thousand
megapixels, or for a second of progressive scans.
"""

from __future__ import annotations

import asyncio
import io
import struct
from concurrent.futures import Executor

from PIL import Image

from rearview.contract.reference import MAX_PICTURE_PIXELS, ImageFile
from rearview.contract.settings import SettingsChange
from rearview.errors import DropReason, InvalidRequest, Reason
from rearview.ingress.image_gate import check_jpeg

__all__ = ["check_picture", "check_pictures"]

PNG = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">8s4s4sII")
"""Signature, length and name of the first chunk, width, height."""
INVALID = "{} is no baseline JPEG and no PNG, or is damaged"
TOO_LARGE = "{} has more than {} pixels: send it smaller"


async def check_pictures(change: SettingsChange, executor: Executor) -> None:
    """Raises as `check_picture` does; takes a few milliseconds of a thread of `executor`."""
    for field, picture in (("reference", change.reference), ("reference_mask", change.reference_mask)):
        if picture:
            await asyncio.get_running_loop().run_in_executor(executor, check_picture, field, picture)


def check_picture(field: str, picture: ImageFile) -> None:
    """Raises InvalidRequest(REFERENCE_INVALID, REFERENCE_TOO_LARGE) for one that cannot be decoded. `field`:
    of the settings. Its bytes are bounded.
    """
    data = picture.data
    is_png = data.startswith(PNG)
    refusal = _check_png(data) if is_png else check_jpeg(data, MAX_PICTURE_PIXELS)
    if refusal is None:
        try:
            with Image.open(io.BytesIO(data), formats=("PNG" if is_png else "JPEG",)) as image:
                image.load()
        except (OSError, ValueError, SyntaxError):  # What Pillow says of damaged files.
            refusal = DropReason.IMAGE_INVALID
    if refusal is DropReason.IMAGE_TOO_LARGE:
        metadata = {"field": field, "max_pixels": str(MAX_PICTURE_PIXELS)}
        text = TOO_LARGE.format(field, MAX_PICTURE_PIXELS)
        raise InvalidRequest(Reason.REFERENCE_TOO_LARGE, text, metadata=metadata)
    if refusal is not None:
        raise InvalidRequest(Reason.REFERENCE_INVALID, INVALID.format(field), metadata={"field": field})


def _check_png(data: bytes) -> DropReason | None:
    if len(data) < HEADER.size:
        return DropReason.IMAGE_INVALID
    _, _, name, width, height = HEADER.unpack_from(data)
    if name != b"IHDR":
        return DropReason.IMAGE_INVALID
    return DropReason.IMAGE_TOO_LARGE if width * height > MAX_PICTURE_PIXELS else None
