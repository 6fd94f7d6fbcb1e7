"""Which timesteps a frame visits. Needs no torch: the ingress asks it too."""

from __future__ import annotations

import math
from functools import lru_cache

__all__ = ["LCM_GRID", "timestep_indices"]

LCM_GRID = 50
"""Timesteps in the grid that LCM was distilled on ("original steps")."""


@lru_cache(maxsize=1024)
def timestep_indices(strength: float, steps: int) -> tuple[int, ...]:
    """Which entries of the 50-step grid a frame visits, noisiest first.

    i0 = floor(50 (1 - strength)), stride = floor(50 strength) // steps. The floors are taken of the
    float products, as users of StreamV2V know them: strength 0.8 starts at index 9, not 10.
    Where the strength has fewer grid entries than there are steps, the stride is 0 and one entry is
    visited again and again. Raises ValueError outside 0 < strength <= 1 and steps >= 1.
    """
    if not (0.0 < strength <= 1.0 and steps >= 1):
        raise ValueError(f"strength {strength} and steps {steps} are not in (0, 1] and 1, 2, …")
    first = min(math.floor(LCM_GRID * (1.0 - strength)), LCM_GRID - 1)
    stride = math.floor(LCM_GRID * strength) // steps
    return tuple(min(first + j * stride, LCM_GRID - 1) for j in range(steps))
