"""Seconds as float ⇄ `google.protobuf.Duration`."""

from __future__ import annotations

from google.protobuf import duration_pb2

__all__ = ["duration", "seconds", "write_duration"]

NANOS = 1_000_000_000


def duration(seconds: float) -> duration_pb2.Duration:
    """Rounded to nanoseconds. Both parts have the sign of the whole."""
    message = duration_pb2.Duration()
    write_duration(message, seconds)
    return message


def write_duration(field: duration_pb2.Duration, seconds: float) -> None:
    """The same into a field, which must be empty."""
    nanos = round(seconds * NANOS)
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), NANOS)
    field.seconds, field.nanos = sign * whole, sign * rest


def seconds(duration: duration_pb2.Duration) -> float:
    """Undo `duration`."""
    return duration.seconds + duration.nanos / NANOS
