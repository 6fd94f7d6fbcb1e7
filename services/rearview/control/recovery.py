"""From where a session goes on after its lane was lost, and how exactly.

    plan(kept, needs) ──> Plan(start, continuity)

EXACT is a checkpoint with every frame after it, or every frame since the first one, or a session without a
past. APPROXIMATE begins with an empty past and enough frames to fill it again; RESET with fewer. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from rearview.contract.memories import BankPolicy
from rearview.contract.session import SessionSpec
from rearview.contract.stream import Continuity

__all__ = ["MAX_FAILED_REPLAYS", "Attempts", "Kept", "Plan", "frames_to_rebuild", "needed", "plan"]

MAX_FAILED_REPLAYS = 2
"""A session whose frames were sent again to so many lanes that were lost meanwhile is not given a further
one: what it carries may be what kills them."""
MERGES_TO_FORGET = 6
"""Writes after which a merged bank holds 1.6 % of what it held (0.5 survives each)."""
ALL_FRAMES = 1 << 62
"""Of a past that no number of last frames rebuilds."""
RING_FRAMES = 8
"""Frames after a warm-up that fill a ring of the default size."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What an ingress has of a session: frames of the ordinals from `first` on, and a checkpoint."""

    first: int
    """The first ordinal whose frame is kept."""
    following: int
    """The ordinal that is given next."""
    unanswered: int
    """The first ordinal whose picture has not come back; `following` if none is missing."""
    checkpoint: int | None = None
    """The last ordinal that it has committed. None: there is none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a session goes on."""

    start: int
    """The first ordinal that is sent again."""
    continuity: Continuity
    from_checkpoint: bool = False
    """Whether the lane opens from the checkpoint. Else its past is empty at `start`."""


def frames_to_rebuild(spec: SessionSpec, warm_up_frames: int, *, forgets: bool = True) -> int:
    """R: after so many frames a past that began empty is much like the one that was lost. 0: there is none.

    `warm_up_frames`: W. `forgets`: not so the chain model, whose every answer depends on every frame before.
    """
    if not forgets:
        return ALL_FRAMES
    needed = [0]
    if (bank := spec.bank) is not None:
        writes = MERGES_TO_FORGET if bank.policy is BankPolicy.MERGE else bank.max_frames
        needed.append(writes * bank.interval)
    if spec.cache is not None:
        needed.append(warm_up_frames + RING_FRAMES)
    return max(needed)


def plan(kept: Kept, frames: int) -> Plan:
    """`frames`: those that rebuild the session's past."""
    if not frames:
        return Plan(max(kept.first, kept.unanswered), Continuity.EXACT)
    if kept.checkpoint is not None and kept.first <= kept.checkpoint + 1:
        return Plan(kept.checkpoint + 1, Continuity.EXACT, from_checkpoint=True)
    if kept.first == 0:
        return Plan(0, Continuity.EXACT)
    is_enough = kept.following - kept.first >= frames
    start = max(kept.first, min(kept.unanswered, kept.following - frames))
    return Plan(start, Continuity.APPROXIMATE if is_enough else Continuity.RESET)


def needed(kept: Kept, frames: int, *, checkpoints: bool) -> int:
    """The first ordinal that must be kept, now that some have come back.

    `frames`: those that rebuild the session's past. `checkpoints`: whether there will be one: else too many
    frames may come for the last one to be of use.
    """
    if not frames:
        return kept.unanswered
    first = kept.first if kept.checkpoint is None else max(kept.first, kept.checkpoint + 1)
    return first if checkpoints else max(first, min(kept.unanswered, kept.following - frames))


@dataclass(frozen=True, slots=True)
class Attempts:
    """What was tried since the session last ran well."""

    failed_replays: int = 0
    """Lanes that were lost before every frame that was sent again had come back."""

    def lost(self, *, replaying: bool) -> Attempts:
        """The lane is gone; `replaying`: before it had answered what was sent again."""
        return Attempts(self.failed_replays + 1 if replaying else 0)

    @property
    def is_over(self) -> bool:
        """Whether the session is to end."""
        return self.failed_replays >= MAX_FAILED_REPLAYS
