"""Names that were others in commits against which pictures are compared."""

from __future__ import annotations

import rearview.local
from rearview import client

__all__ = ["BankOptions", "CacheOptions", "LocalService"]


def _either(name: str, former: str) -> type:
    """`name`, or what it was called up to commit a2414e9."""
    found: type = getattr(client, name, None) or getattr(client, former)
    return found


BankOptions = _either("BankOptions", "FeatureBank")
CacheOptions = _either("CacheOptions", "TemporalCache")
LocalService: type = getattr(rearview.local, "PlainService", None) or rearview.local.LocalService
"""Without Ray, or of commits that had none such: with it. A service gives the same pictures either way."""
