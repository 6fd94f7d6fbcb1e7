"""What a client chose at open, beside what is fixed in the spec."""

from __future__ import annotations

from dataclasses import dataclass

from rearview.contract.opening import OpenRequest
from rearview.contract.similarity import SimilaritySettings
from rearview.contract.stream import DropPolicy, ImageFormat

__all__ = ["SessionOptions"]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session's frames are paced and its answers made."""

    policy: DropPolicy
    frame_budget_s: float
    answer_format: ImageFormat
    similarity: SimilaritySettings | None = None
    """None: every frame is translated, however much it looks like the one before."""

    @classmethod
    def of(cls, request: OpenRequest) -> SessionOptions:
        """Raises InvalidRequest(SETTING_OUT_OF_RANGE) for a filter that has no meaning."""
        asked = request.similarity_filter
        similarity = None if asked is None else asked.apply(SimilaritySettings())
        return cls(request.drop_policy, request.frame_budget_s, request.answer_format, similarity)
