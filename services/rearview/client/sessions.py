"""A session as its tenant sees it from outside: what `sessions get` and `list` show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from rearview.contract.stream import SessionState
from rearview.schema.enums import SESSION_STATES
from rearview.v1 import session_service_pb2 as pb

__all__ = ["SessionInfo", "session_info"]


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
    return SessionInfo(
        session_id=message.session_id,
        tenant=message.tenant,
        state=SESSION_STATES.member(message.state) or SessionState.UNKNOWN,
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
