"""Memory that a process has freed stays with it, for the next picture.

glibc gives freed memory at the end of its heap back to the system, as a rule beyond some hundred kB, and asks
for it again a moment later. The system then clears page after page of it, and each costs a fault: a picture
of a megabyte is copied in a twentieth of the time that this takes, and it is copied several times.
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

KEPT_BYTES = 16 << 20
"""Free memory at the end of a heap that stays: the copies of a few large pictures under way."""
LARGEST_BYTES = 32 << 20
"""Blocks up to this size come from a heap, and larger ones from the system: the most that glibc takes."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # Of malloc.h.


def keep_freed_memory() -> None:
    """From now on, in this process. Does nothing where the C library is not glibc. Idempotent."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGEST_BYTES)  # Each of the two ends what glibc sets by itself.
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
