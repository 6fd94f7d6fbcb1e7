"""Which frames look so much like the last translated one that they need no picture of their own.

An admission rule, before a frame gets its ordinal. Pure: it neither sleeps nor keeps a clock, and its
chance is a hash of (seed, frame index), so that a session gives the same answers however it is paced. It
compares thumbnails: a mean over 8 by 8 pixels forgives a camera's noise, and costs a thousandth of a
forward.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rearview.contract.similarity import SimilaritySettings

__all__ = [
    "FilterState",
    "PackedThumbnail",
    "SimilarityFilter",
    "Thumbnail",
    "Under",
    "cosine",
    "skip_probability",
    "thumbnail",
]

CELL = 8
"""Pixels of a side that become one of the thumbnail; sides of frames are multiples of it."""
NORM_FLOOR = 1e-6

Thumbnail: TypeAlias = NDArray[np.float32]

Under: TypeAlias = tuple[int | None, ...]
"""What a frame is translated under, as far as two of them are compared."""


@dataclass(frozen=True, slots=True)
class PackedThumbnail:
    """A thumbnail as plain values."""

    shape: tuple[int, int, int]
    data: str
    """Its numbers, float32, little end first, in base64."""

    def __post_init__(self) -> None:
        # Base64 of so many bytes has so many characters.
        size = 4 * math.prod(self.shape)
        if min(self.shape) < 0 or len(self.data) != 4 * -(-size // 3):
            raise ValueError(f"{len(self.data)} characters for a thumbnail of {self.shape}")

    @classmethod
    def of(cls, seen: Thumbnail) -> PackedThumbnail:
        """Pack (h, w, 3)."""
        height, width, channels = seen.shape
        data = base64.b64encode(seen.astype("<f4").tobytes()).decode("ascii")
        return cls((height, width, channels), data)

    def unpack(self) -> Thumbnail:
        """The thumbnail, bit for bit. Raises ValueError if `data` is no base64."""
        flat = np.frombuffer(base64.b64decode(self.data, validate=True), "<f4")
        return flat.reshape(self.shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FilterState:
    """What a filter goes on with."""

    reference: PackedThumbnail | None = None
    under: Under = ()
    skipped: int = 0


NEW_FILTER = FilterState()


class SimilarityFilter:
    """The filter of one session: what it compares with is the last frame that it let through."""

    def __init__(self, settings: SimilaritySettings, state: FilterState = NEW_FILTER) -> None:
        self._settings = settings
        self._reference = None if state.reference is None else state.reference.unpack()
        self._under = state.under
        self._skipped = state.skipped
        """Frames left out since the reference."""

    @property
    def state(self) -> FilterState:
        """With which another filter goes on as this one would."""
        reference = None if self._reference is None else PackedThumbnail.of(self._reference)
        return FilterState(reference, self._under, self._skipped)

    def is_unchanged(self, seen: Thumbnail, frame_index: int, seed: int, under: Under = ()) -> bool:
        """Whether to leave the frame out. If not, it is what the next ones are compared with.

        `under`: what the frame would be translated under. A frame under something else than the last
        translated one is let through: its picture would be another, however still the camera.
        """
        if self._may_skip(seen, under) and draw(seed, frame_index) < self._probability(seen):
            self._skipped += 1
            return True
        self._reference, self._under, self._skipped = seen, under, 0
        return False

    def forget(self) -> None:
        """The frame that was let through last got no picture: the next one is let through."""
        self._reference = None

    def _may_skip(self, seen: Thumbnail, under: Under) -> bool:
        known = self._reference is not None and self._reference.shape == seen.shape
        return known and under == self._under and self._skipped < self._settings.max_skip_frames

    def _probability(self, seen: Thumbnail) -> float:
        assert self._reference is not None, "nothing to compare with"
        return skip_probability(cosine(seen, self._reference), self._settings.threshold)


def thumbnail(pixels_HWC: NDArray[np.uint8]) -> Thumbnail:
    """A frame (H, W, 3) in small, (H/8, W/8, 3) in [-1, 1]: black is -1, white 1, whatever the frame."""
    height, width, channels = pixels_HWC.shape
    rows, columns = height // CELL, width // CELL
    # Rows first, in long runs and narrow integers: this is most of the cost.
    sums = pixels_HWC.reshape(rows, CELL, width * channels).sum(axis=1, dtype=np.uint16)
    cells = sums.reshape(rows, columns, CELL, channels).sum(axis=2, dtype=np.uint32)
    seen: Thumbnail = cells.astype(np.float32) * np.float32(2.0 / (255 * CELL * CELL)) - np.float32(1.0)
    return seen


def cosine(left: Thumbnail, right: Thumbnail) -> float:
    """Cosine similarity of two thumbnails. That of one without length (all grey) to another is 0."""
    a, b = left.ravel().astype(np.float64), right.ravel().astype(np.float64)
    norms = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / max(norms, NORM_FLOOR)


def skip_probability(similarity: float, threshold: float) -> float:
    """1 for frames that are alike, falling to 0 at the threshold."""
    if threshold >= 1.0:
        return 0.0
    return min(1.0, max(0.0, 1.0 - (1.0 - similarity) / (1.0 - threshold)))


def draw(seed: int, frame_index: int) -> float:
    """A number in [0, 1) for a frame of a session with this seed, and always the same one."""
    digest = hashlib.blake2b(f"similarity/{seed}/{frame_index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
