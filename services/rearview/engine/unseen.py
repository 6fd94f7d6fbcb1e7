"""Frames that are sent again though their clients have the pictures: they run for what they leave in memory.

A session that lost its replica goes on from a checkpoint, and replays the frames after it. Of a bank that is
written with every fourth frame only those change anything; a temporal cache, or a hash chain, takes in all.
"""

from __future__ import annotations

from rearview.engine.memory.compose import Memories
from rearview.engine.rows import FrameInFlight, Row
from rearview.engine.sessions import Session

__all__ = ["leaves_nothing"]


def leaves_nothing(frame: FrameInFlight, session: Session, memory: Memories) -> bool:
    """Whether the session's past would be the same without the frame, whatever becomes of those before it."""
    if any(each.settings != frame.settings for each in session.frames.values()):
        return False  # It depends on what they leave.
    rows = (Row((frame,), operator, None, 0.0) for operator in frame.operators)
    return not any(memory.changes_past(row) for row in rows)
