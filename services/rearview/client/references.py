"""Reference images and masks from files of whatever size, as small as the service takes them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rearview.client.pictures import MediaError
from rearview.contract.reference import MAX_MASK_BYTES, MAX_PICTURE_BYTES, ImageFile

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_reference", "read_reference_mask"]

SIDE = 224
"""Of the square that image encoders see."""
MASK_SIDE = 128
"""Pixels of a mask's longer side: more than a network has tokens there."""
QUALITIES = (95, 90, 80, 65, 50)


def read_reference(path: Path) -> ImageFile:
    """The square in a picture's middle, as an image encoder sees it. Raises MediaError."""
    from PIL import Image, ImageOps

    image = _opened(path).convert("RGB")
    return _encoded(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC), MAX_PICTURE_BYTES)


def read_reference_mask(path: Path) -> ImageFile:
    """A mask: bright is where the reference is followed. Raises MediaError."""
    image = _opened(path).convert("L")
    image.thumbnail((MASK_SIDE, MASK_SIDE))
    return _encoded(image, MAX_MASK_BYTES)


def _opened(path: Path) -> Any:
    """Upright, and over white where it is transparent."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "is no picture that can be read"
        raise MediaError(f"{path}: {reason}") from None
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _encoded(image: Image, most: int) -> ImageFile:
    """Baseline JPEG of so many bytes at most."""
    for quality in QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= most:
            break
    return ImageFile.of(file.getvalue())
