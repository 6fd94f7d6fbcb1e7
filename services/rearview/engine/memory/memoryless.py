"""No past at all: per-frame translation. Slots are still taken, since they bound a replica's sessions."""

from __future__ import annotations

from rearview.engine.memory.build import KINDS
from rearview.engine.memory.compose import Memories

__all__ = ["Memoryless"]


class Memoryless(Memories):
    """The memories of a model that translates every frame by itself: a session that asks for a past is
    refused, since it would be ignored in silence.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__((), num_slots, [kind.lacking() for kind in KINDS])
