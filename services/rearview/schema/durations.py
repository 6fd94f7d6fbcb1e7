"""Seconds as float ⇄ `google.protobuf.Duration`."""

from __future__ import annotations

from google.protobuf import duration_pb2

__all__ = ["duration", "seconds"]

NANOS = 1_000_000_000


def duration(seconds: float) -> duration_pb2.Duration:
    """Rounded to nanoseconds. Both parts have the sign of the whole."""
    nanos = round(seconds * NANOS)
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), NANOS)
    return duration_pb2.Duration(seconds=sign * whole, nanos=sign * rest)


def seconds(duration: duration_pb2.Duration) -> float:
    """Undo `duration`."""
    return duration.seconds + duration.nanos / NANOS
