"""Which frames are left out because they look like the last translated one: the settings of the filter."""

from __future__ import annotations

from dataclasses import dataclass

from rearview.contract.change import Change
from rearview.errors import out_of_range

__all__ = ["SimilarityOptions", "SimilaritySettings"]

MAX_SKIP_FRAMES = 1000


@dataclass(frozen=True, slots=True)
class SimilaritySettings:
    """How much alike, and how often. Raises InvalidRequest(SETTING_OUT_OF_RANGE) that names the field."""

    threshold: float = 0.98
    """Cosine similarity, 0 to 1, above which a frame may be left out, the more likely the higher. 1: none
    is."""
    max_skip_frames: int = 10
    """The most frames that are left out one after another, 1 to 1000."""

    def __post_init__(self) -> None:
        allowed = {
            "threshold": 0.0 <= self.threshold <= 1.0,
            "max_skip_frames": 1 <= self.max_skip_frames <= MAX_SKIP_FRAMES,
        }
        for name, is_allowed in allowed.items():
            if not is_allowed:
                field = f"similarity_filter.{name}"
                raise out_of_range(field, f"{field} is out of range")


@dataclass(frozen=True, slots=True)
class SimilarityOptions(Change[SimilaritySettings]):
    """A filter that a client asks for: `Dropped(UNCHANGED)`. None: the default of `SimilaritySettings`."""

    threshold: float | None = None
    max_skip_frames: int | None = None
