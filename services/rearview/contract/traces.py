"""A frame's trace: which frames have one, and what the ingress knows of it when the answer has gone.

Each traced frame is one trace. Its id follows from the session and the frame's place, so that a frame that is
sent again, to another lane or over another ingress, stays one trace, and everyone takes the same frames.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from rearview.contract.frame import Timing

__all__ = ["NO_SAMPLING", "Caller", "Entry", "FrameTrace", "Sampling", "read_traceparent", "trace_id_of"]

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_UNKNOWN = "ff"
"""A version that is none."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The trace of whoever feeds a session, as W3C's `traceparent` tells it."""

    trace_id: bytes
    """16 bytes."""
    span_id: bytes
    """8 bytes."""
    is_sampled: bool


def read_traceparent(text: str) -> Caller | None:
    """None for what is not a `traceparent`: a caller's mistake in it costs the link, not the call."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    is_known = version != _UNKNOWN and (version != "00" or more is None)
    caller = Caller(bytes.fromhex(trace_id), bytes.fromhex(span_id), bool(int(flags, 16) & 1))
    return caller if is_known and any(caller.trace_id) and any(caller.span_id) else None


def trace_id_of(session_id: str, place: int) -> bytes:
    """16 bytes, of the frame of that place."""
    return hashlib.blake2b(f"{session_id}/{place}".encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames are traced: a share, chosen by their ids as OpenTelemetry's `TraceIdRatioBased` does."""

    ratio: float
    """Of sessions whose caller says nothing of traces."""
    asked_ratio: float
    """Of those whose caller traces. Whose caller says that it does not have none."""

    def ratio_for(self, caller: Caller | None) -> float:
        """The share of a session's frames."""
        if caller is None:
            return self.ratio
        return self.asked_ratio if caller.is_sampled else 0.0

    @staticmethod
    def takes(trace_id: bytes, ratio: float) -> bool:
        """Whether that one is among the share."""
        return int.from_bytes(trace_id[8:]) < round(ratio * (1 << 64))


NO_SAMPLING = Sampling(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Entry:
    """That a frame was sent into a lane."""

    time_s: float
    epoch: int
    replicas: tuple[str, ...]
    """One per span."""


@dataclass(slots=True)
class FrameTrace:
    """One frame's way. Times are on the ingress's monotonic clock; None: it never came so far."""

    trace_id: bytes
    session_id: str
    tenant: str
    model: str
    place: int
    frame_index: int
    received_s: float
    caller: Caller | None = None
    taken_s: float | None = None
    """Its turn has come, and it is decoded."""
    decoded_s: float | None = None
    ordinal: int | None = None
    entries: list[Entry] = field(default_factory=list)
    """More than one if the session went on in another lane meanwhile."""
    back_s: float | None = None
    """It has come back, and its picture is encoded until it is answered."""
    timings: tuple[Timing, ...] = ()
    """Arrivals are on the clocks of other machines."""
    outcome: str = ""
    """`translated`, or the name of the reason for which it was dropped."""
    answered_s: float | None = None
    """Its answer is known; those of the frames before it go first."""
    sent_s: float = 0.0
    """The answer was handed to gRPC."""
