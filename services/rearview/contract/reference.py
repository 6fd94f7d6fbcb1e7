"""A reference image: whose face, style or look pictures follow (IP-Adapter), how much, and where."""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass, field

from rearview.errors import InvalidRequest, Reason

__all__ = [
    "GREY",
    "MAX_MASK_BYTES",
    "MAX_PICTURE_BYTES",
    "MAX_PICTURE_PIXELS",
    "MAX_REFERENCE_SCALE",
    "NO_IMAGE",
    "ImageFile",
    "check_reference",
]

MAX_PICTURE_BYTES = 64 << 10
"""Of a reference image. It is part of the settings, and travels with each version of them."""
MAX_MASK_BYTES = 16 << 10
MAX_PICTURE_PIXELS = 512 * 512
"""Of either. Image encoders see 224 by 224 of a picture."""
MAX_REFERENCE_SCALE = 2.0


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A JPEG or PNG file as text, since settings travel as JSON. Empty: there is none. Raises
    InvalidRequest(REFERENCE_INVALID) for text that is no base64.
    """

    base64: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            self.data  # noqa: B018
        except ValueError:
            text = "a reference image that is no base64"
            raise InvalidRequest(Reason.REFERENCE_INVALID, text, metadata={"field": "reference"}) from None

    @classmethod
    def of(cls, data: bytes) -> ImageFile:
        """That of these bytes."""
        return cls(base64.b64encode(data).decode())

    @property
    def data(self) -> bytes:
        """The file."""
        return base64.b64decode(self.base64, validate=True)

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return len(self.base64) // 4 * 3 - self.base64[-2:].count("=")

    @property
    def digest(self) -> str:
        """Stands for the content: equal iff it is."""
        return _digest(self.base64)

    def __bool__(self) -> bool:
        return bool(self.base64)


NO_IMAGE = ImageFile()
GREY = ImageFile(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
)
"""A single pixel, to measure with."""


@functools.lru_cache(64)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_reference(picture: ImageFile, mask: ImageFile, *, has_adapter: bool) -> None:
    """Raises InvalidRequest(REFERENCE_UNSUPPORTED) for either in a deployment that cannot follow any, and
    REFERENCE_TOO_LARGE for too many bytes. Whether it is a picture is for whoever can decode it.
    """
    if (picture or mask) and not has_adapter:
        raise InvalidRequest(
            Reason.REFERENCE_UNSUPPORTED,
            "this deployment has no adapter for reference images (model.reference)",
            metadata={"field": "reference"},
        )
    for name, file, most in (
        ("reference", picture, MAX_PICTURE_BYTES),
        ("reference_mask", mask, MAX_MASK_BYTES),
    ):
        if file.num_bytes > most:
            raise InvalidRequest(
                Reason.REFERENCE_TOO_LARGE,
                f"{name} has {file.num_bytes} bytes, and may have {most}: send it smaller",
                metadata={"field": name, "max_bytes": str(most)},
            )
