"""What OpenMP in a replica's process must be told, in its environment, before torch is imported."""

from __future__ import annotations

__all__ = ["SPINS"]

SPINS = "1000"
"""`GOMP_SPINCOUNT`: how long OpenMP workers spin before they sleep. Its default, 300 times that, makes a span
with two threads ten times slower as soon as another process wants one of their cores."""
