"""What a session at the edge *is*, apart from what is on its way, as one value of plain values.

Another ingress that has it gives the frames to come the same ordinals, drops, scenes and versions. It holds
no frame: those received and not answered, waiting, or in the lane are in flight, and a move waits for them
while a recovery asks the spans and the client for them (`Book.rebuilt`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from rearview.contract.settings import Settings
from rearview.contract.warmup import LaneWarmUpState
from rearview.ingress.options import Terms
from rearview.ingress.pacing import PacerCounts
from rearview.ingress.scene import FIRST_SCENE, SceneState
from rearview.ingress.similarity import NEW_FILTER, FilterState

__all__ = ["EdgeState"]


@dataclass(frozen=True, slots=True)
class EdgeState:
    """The durable part of a session at the edge."""

    settings: Settings
    """What frames received from now on are translated under, as the client has asked."""
    in_force: Settings
    """What the last admitted frame is translated under: with its scene and the blend under way."""
    lane_version: int
    """The number by which the lane knows those in force."""
    next_ordinal: int
    last_index: int
    """The client's number of the last usable frame; -1 before the first."""
    pacing: PacerCounts
    translated: int
    dropped: int
    warm_up: LaneWarmUpState
    similarity: FilterState
    """Of a session that filters."""
    scenes: SceneState
    """Of a session that detects scenes."""

    @classmethod
    def at_open(cls, terms: Terms) -> EdgeState:
        """Before the first frame."""
        settings = terms.spec.settings
        return cls(
            settings=settings,
            in_force=settings,
            lane_version=0,
            next_ordinal=0,
            last_index=-1,
            pacing=PacerCounts(),
            translated=0,
            dropped=0,
            warm_up=LaneWarmUpState(settings),
            similarity=NEW_FILTER,
            scenes=FIRST_SCENE,
        )

    def to_json(self) -> bytes:
        """As text: some hundred bytes, and two thumbnails where they are in use (64 KiB each at 512²)."""
        return _STATE.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> EdgeState:
        """Undo `to_json`, exactly. Raises ValueError."""
        return _STATE.validate_json(text)


_STATE = TypeAdapter(EdgeState)
