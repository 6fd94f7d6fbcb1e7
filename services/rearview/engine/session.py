"""What a session is to the engine: values only, so they travel between processes and need no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

__all__ = ["NoiseRule", "SessionSpec", "Settings", "SettingsChange"]


class NoiseRule(Enum):
    """How the noise of a denoising step is keyed."""

    FIXED = 1
    """(seed, step): the same for every frame of the session, as in StreamDiffusion."""
    FRESH = 2
    """(seed, ordinal, step): new for every frame."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one frame is translated under. A frame keeps those it was admitted with."""

    prompt: str = ""
    strength: float = 0.4
    """How far the picture may leave the input, in (0, 1]."""
    steps: int = 2
    """Denoising steps, at least 1."""
    seed: int = 0
    """Unsigned 64-bit seed of the noise."""
    noise_rule: NoiseRule = NoiseRule.FIXED


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """A change of settings; None keeps a field."""

    prompt: str | None = None
    strength: float | None = None
    steps: int | None = None
    seed: int | None = None
    noise_rule: NoiseRule | None = None

    def apply(self, settings: Settings) -> Settings:
        """`settings` with the named fields changed."""
        named = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(settings, **named)


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What is fixed for a session's life."""

    session_id: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    max_steps: int
    """Slots are taken for so many denoising steps."""
    settings: Settings = field(default_factory=Settings)
    """Version 0 of the settings."""
    tenant: str = "local"
    weight: float = 1.0
    """The tenant's share beside others."""
