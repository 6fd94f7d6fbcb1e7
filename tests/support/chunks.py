"""Frames of a session in chunks: every operator takes all of one as one row.

The first chunk is one frame, every other four, as a causal autoencoder of video takes them. Chunks are
counted from ordinal 0, so where they stand needs no state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rearview.contract.chain import Operator
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.warmup import Changes
from rearview.engine.memory.compose import Memories
from rearview.engine.rows import FrameInFlight, Row
from rearview.engine.windows import Flight, ShadowInput, Turn, Windows, WindowsState, filled

FRAMES = 4


def chunk_of(ordinal: int) -> range:
    """The ordinals of the chunk that a frame is in."""
    if ordinal <= 0:
        return range(ordinal, ordinal + 1)
    start = 1 + (ordinal - 1) // FRAMES * FRAMES
    return range(start, start + FRAMES)


class ChunkMemories(Memories):
    """Memories whose sessions go in chunks."""

    def windows(self, spec: SessionSpec, steps: Sequence[int]) -> Windows:
        return Chunks()


class Chunks:
    """A place whose frame was lost is taken by a copy of its neighbour."""

    changes = Changes()

    def enter(self, ordinal: int, settings: Settings) -> Changes:
        return self.changes

    def resume(self, state: WindowsState, back: Callable[[ShadowInput, int], FrameInFlight]) -> None:
        pass

    def before_all(self, flight: Flight) -> Iterator[Turn]:
        return iter(())

    def turn(self, head: FrameInFlight, flight: Flight) -> Turn | None:
        chunk = chunk_of(head.ordinal)
        if flight.expected < chunk.stop:
            return None
        frames = [flight.frames[ordinal] for ordinal in chunk if ordinal in flight.frames]
        if any(frame.operator != head.operator for frame in frames):
            return None
        return Turn(filled(frames, chunk), warms_up=len(chunk) > 1)

    def goes_alone(self, frame: FrameInFlight) -> bool:
        return False

    def frames_at(self, frame: FrameInFlight, operator: Operator) -> int:
        return len(chunk_of(frame.ordinal))

    def committed(self, row: Row) -> None:
        pass

    def passed(self, frame: FrameInFlight) -> None:
        pass

    def failed(self, row: Row) -> None:
        pass

    def end_of_window(self, ordinal: int, flight: Flight) -> int:
        return chunk_of(ordinal).stop - 1

    def export(self) -> WindowsState:
        return WindowsState()

    def check_integrity(self) -> None:
        pass
