"""What is fixed for a session's life."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.settings import Settings
from rearview.contract.size import Size

__all__ = ["SessionSpec"]


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What is fixed for a session's life."""

    session_id: str
    width: int
    """Pixels, until a change of settings names others."""
    height: int
    """Pixels, as the width."""
    max_steps: int
    """Slots are taken for so many denoising steps."""
    settings: Settings = field(default_factory=Settings)
    """Version 0 of the settings."""
    tenant: str = "local"
    weight: float = 1.0
    """The tenant's share beside others."""
    bank: BankSettings | None = None
    """None: spatial attention sees the frame itself alone."""
    cache: CacheSettings | None = None
    """None: there is no temporal attention."""
    max_kept_bytes: int = field(default=1 << 30, compare=False)
    """Pictures that a replica of the last span keeps of the tenant's sessions until they are acknowledged. A
    word to replicas, as it was when the session was opened: no picture depends on it."""

    def size_under(self, settings: Settings) -> Size:
        """Pixels of a frame under `settings`, and of its picture."""
        return Size(settings.width or self.width, settings.height or self.height)

    def sized(self, settings: Settings) -> Settings:
        """`settings`, with the size of a frame under them said."""
        size = self.size_under(settings)
        return settings if settings.size == size else replace(settings, width=size.width, height=size.height)
