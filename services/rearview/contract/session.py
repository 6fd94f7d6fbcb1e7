"""What is fixed for a session's life."""

from __future__ import annotations

from dataclasses import dataclass, field

from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.settings import Settings

__all__ = ["SessionSpec"]


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
    bank: BankSettings | None = None
    """None: spatial attention sees the frame itself alone."""
    cache: CacheSettings | None = None
    """None: there is no temporal attention."""
    max_kept_bytes: int = field(default=1 << 30, compare=False)
    """Pictures that a replica of the last span keeps of the tenant's sessions until they are acknowledged. A
    word to replicas, as it was when the session was opened: no picture depends on it."""
