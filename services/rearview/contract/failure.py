"""Why a forward gave no pictures: what an engine tells of it, and what is counted."""

from __future__ import annotations

from enum import Enum

__all__ = ["Failure"]


class Failure(Enum):
    """Of a forward."""

    NO_MEMORY = "no_memory"
    """There was no memory for so many samples: its rows run again in smaller forwards."""
    NOT_FINITE = "not_finite"
    """Some rows gave numbers that are not finite: they run again alone, and the others as they were."""
    RAISED = "raised"
    """Anything else: its rows run again alone."""
