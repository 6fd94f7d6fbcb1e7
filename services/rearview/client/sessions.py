"""A session as its tenant sees it from outside: what `sessions get` and `list` show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from rearview.v1 import session_service_pb2 as pb

__all__ = ["SessionInfo", "SessionState", "session_info"]


class SessionState(Enum):
    """The life of a session (`rearview.v1.Session.State`)."""

    UNKNOWN = 0
    STREAMING = 1
    DETACHED = 2


@dataclass(frozen=True)
class SessionInfo:
    """One session."""

    session_id: str
    tenant: str
    state: SessionState
    model: str
    width: int
    height: int
    open_time: datetime
    received_frames: int
    translated_frames: int
    dropped_frames: int
    lane: tuple[str, ...]
    """The replicas that it is pinned to, one per span."""
    epoch: int


def session_info(message: pb.Session) -> SessionInfo:
    known = message.state in {state.value for state in SessionState}
    return SessionInfo(
        session_id=message.session_id,
        tenant=message.tenant,
        state=SessionState(message.state) if known else SessionState.UNKNOWN,
        model=message.model,
        width=message.width,
        height=message.height,
        open_time=message.open_time.ToDatetime(tzinfo=UTC),
        received_frames=message.received_frames,
        translated_frames=message.translated_frames,
        dropped_frames=message.dropped_frames,
        lane=tuple(message.lane),
        epoch=message.epoch,
    )
