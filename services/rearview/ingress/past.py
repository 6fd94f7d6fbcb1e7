"""What an ingress keeps of a session's past, for a lane that is opened anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rearview.contract.stream import Continuity
from rearview.control.recovery import Attempts, Kept, needed
from rearview.ingress.inputs import Inputs

__all__ = ["Checkpoint", "Past"]

_LOSS = (Continuity.EXACT, Continuity.APPROXIMATE, Continuity.RESET)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a session's spans remembered between two frames, as bytes."""

    ordinal: int
    """The last one that it has committed. Its frame, and all before it, had come back."""
    parts: Sequence[bytes]
    """As the replicas have written them (`replica/state.py`)."""

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.parts))


class Past:
    """That of one session."""

    def __init__(self, frames: int) -> None:
        """`frames`: those that rebuild it from nothing; 0: it has none."""
        self.frames = frames
        self.checkpoint: Checkpoint | None = None
        self.expects_checkpoints = False
        """Whether one will be taken, so that inputs are kept until then."""
        self.attempts = Attempts()
        self.replayed_to = 0
        """The ordinal after the last one that was sent again."""
        self.is_parked = False
        """Whether the session has no lane because nobody feeds it."""
        self.moved: list[Continuity] = []
        """How it went on from lane to lane, until its client is told."""
        self.kernels: tuple[str, ...] = ()
        """What its lane computes with (`Lane.kernels`), or computed with last; empty: nobody knows."""

    @property
    def checkpointed(self) -> int | None:
        """The last ordinal of the checkpoint; None if there is none."""
        return None if self.checkpoint is None else self.checkpoint.ordinal

    def begin(self, kernels: tuple[str, ...], before: tuple[str, ...]) -> None:
        """The session begins here, in a lane of these kernels; `before`: of its last lane elsewhere."""
        self.kernels = before or kernels
        if before:
            self.goes_on(Continuity.EXACT, kernels)

    def goes_on(self, continuity: Continuity, kernels: tuple[str, ...]) -> Continuity:
        """The session goes on in another lane, from a past that is as `continuity` says. Returns what its
        client is told: where other kernels compute, pictures are not the same, equal past or not.
        """
        is_other = bool(self.kernels and kernels) and self.kernels != kernels
        told = max(continuity, Continuity.APPROXIMATE, key=_LOSS.index) if is_other else continuity
        self.kernels = kernels
        self.moved.append(told)
        return told

    def told_moved(self) -> Continuity:
        """The client is told of the moves that it has not been told of: how it went on, at the worst."""
        told, self.moved = max(self.moved, key=_LOSS.index, default=Continuity.EXACT), []
        return told

    def needed(self, kept: Kept) -> int:
        """The first ordinal whose frame must be kept."""
        return needed(kept, self.frames, checkpoints=self.expects_checkpoints)

    def let_go(self, inputs: Inputs, kept: Kept) -> None:
        """Forget frames that need not be kept and, where no checkpoint will make room, what does not fit."""
        inputs.forget(self.needed(kept))
        if not self.expects_checkpoints:
            inputs.fit(kept.unanswered)

    def lane_lost(self, kept: Kept) -> None:
        """Count it, if it was lost before everything that was sent again had come back."""
        self.attempts = self.attempts.lost(replaying=kept.unanswered < self.replayed_to)
