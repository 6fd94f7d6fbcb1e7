"""A session while it is open in an engine: what was let in, what is in flight, what has committed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rearview.contract.chain import Operator
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.memory.export import Chunk
from rearview.engine.rows import FrameInFlight
from rearview.engine.warmup import WarmUp

__all__ = ["OpenSession", "SessionState"]


@dataclass(slots=True)
class OpenSession:
    """What the engine knows of one session; its past is in the memory."""

    spec: SessionSpec
    settings: dict[int, Settings]
    ordered: frozenset[Operator]
    """Operators that one frame runs after the other."""
    warm_up: WarmUp | None = None
    """None: its frames never wait for each other."""
    expected: int = 0
    """The next ordinal to let in."""
    early: dict[int, Frame[Tensor]] = field(default_factory=dict)
    """Arrived before an earlier ordinal did."""
    frames: OrderedDict[int, FrameInFlight] = field(default_factory=OrderedDict)
    """In flight here, by ordinal."""
    committed: dict[int, int] = field(default_factory=dict)
    """Denoising step to the last ordinal that committed it."""
    retained: OrderedDict[int, Frame[Tensor]] = field(default_factory=OrderedDict)
    flushing: bool = False

    def is_cold(self, frame: FrameInFlight, step: int) -> bool:
        """Whether `frame`, which no earlier one still precedes at `step`, must warm it up."""
        return self.warm_up is not None and self.warm_up.step(step).is_cold(frame)

    def shadow_is_due(self, step: int, head: FrameInFlight | None = None) -> bool:
        if self.warm_up is None:
            return False
        return self.warm_up.step(step).shadow_is_due(self.committed.get(step, -1), head)

    def own(self, frames: Sequence[FrameInFlight]) -> list[FrameInFlight]:
        """Those that are in flight; the others are copies that fill a window."""
        return [frame for frame in frames if self.frames.get(frame.ordinal) is frame]


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session on its way from one engine to another of the same span. Deadlines are on the clock of the
    process that exported it.
    """

    session: OpenSession
    memory: Sequence[Chunk]
    """Its past, as `Memories.export` gave it."""
