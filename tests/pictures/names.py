"""Names of the client that were others in commits against which pictures are compared."""

from __future__ import annotations

from rearview import client

__all__ = ["BankOptions", "CacheOptions"]


def _either(name: str, former: str) -> type:
    """`name`, or what it was called up to commit a2414e9."""
    found: type = getattr(client, name, None) or getattr(client, former)
    return found


BankOptions = _either("BankOptions", "FeatureBank")
CacheOptions = _either("CacheOptions", "TemporalCache")
