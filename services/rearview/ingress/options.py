"""What was agreed when a session opened."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from rearview.config import TenantConfig
from rearview.contract.opening import OpenRequest
from rearview.contract.session import SessionSpec
from rearview.contract.similarity import SimilaritySettings
from rearview.contract.stream import DropPolicy, ImageFormat

__all__ = ["SessionOptions", "Terms", "token_sha256"]

LIVE_TARGET_S = 0.1
"""Deadline of a live frame without a budget of its own: it orders sessions, nothing is dropped for it."""


def token_sha256(token: str) -> str:
    """Hash of a resume token, hex. Tokens are random, not passwords, so a fast one is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session's frames are paced and its answers made."""

    policy: DropPolicy
    frame_budget_s: float
    answer_format: ImageFormat
    similarity: SimilaritySettings | None = None
    """None: every frame is translated, however much it looks like the one before."""

    @property
    def budget_s(self) -> float:
        """From a frame's receipt to its deadline."""
        if self.policy is DropPolicy.LOSSLESS:
            return float("inf")
        return self.frame_budget_s if self.policy is DropPolicy.DEADLINE else LIVE_TARGET_S

    @classmethod
    def of(cls, request: OpenRequest) -> SessionOptions:
        """Raises InvalidRequest(SETTING_OUT_OF_RANGE) for a filter that has no meaning."""
        asked = request.similarity_filter
        similarity = None if asked is None else asked.apply(SimilaritySettings())
        return cls(request.drop_policy, request.frame_budget_s, request.answer_format, similarity)


@dataclass(frozen=True, slots=True)
class Terms:
    """All that is fixed for the session's life, at the edge."""

    spec: SessionSpec
    options: SessionOptions
    tenant: TenantConfig
    warm_up_frames: int = 0
    """How many frames warm up together in a session with a temporal cache."""
    forgets: bool = True
    """Whether old frames stop to matter: not with the chain model."""
    resume_token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Who has it may resume."""
    asked_s: float | None = None
    """When a client asked for the session. None: it began at another ingress."""

    @property
    def token_sha256(self) -> str:
        """Of the resume token, hex: what others may know of it."""
        return token_sha256(self.resume_token)

    @property
    def instant_start(self) -> bool:
        """Whether a warm-up is its first frame, repeated."""
        return self.spec.cache is not None and self.spec.cache.instant_start

    @property
    def detects_scenes(self) -> bool:
        """Whether a cut of the video changes anything."""
        return self.spec.cache is not None and self.spec.cache.scene_detection
