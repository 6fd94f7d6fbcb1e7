"""What a traced frame tells of each span that it has left, behind its planes.

    visit    = arrival f64 | forwards u8 | forward * n
    forward  = start f32 | seconds f32 | rows u16 | length of the name u8 | UTF-8

An arrival is on the wall clock of the replica's machine. Nothing is decided by it: whoever makes the trace
knows what must have come before what (`telemetry/placing.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from rearview.contract.frame import Forward, Timing

__all__ = ["decode_visits", "encode_visits"]

_VISIT = struct.Struct("<dB")
_FORWARD = struct.Struct("<ffHB")
MAX_FORWARDS = 255
"""Of one visit, that are told: more than a chain has operators."""


def encode_visits(timings: Sequence[Timing]) -> bytes:
    """One after the other."""
    return b"".join(map(_encoded, timings))


def decode_visits(
    body: bytes | bytearray, at: int, spans: int
) -> tuple[Sequence[float], Sequence[tuple[Forward, ...]]]:
    """Arrivals and forwards of so many spans, from `at` to the end of `body`. Raises ValueError if they do
    not end there, and `struct.error`.
    """
    arrivals: list[float] = []
    visits: list[tuple[Forward, ...]] = []
    for _ in range(spans):
        arrived_s, num_forwards = _VISIT.unpack_from(body, at)
        at += _VISIT.size
        forwards: list[Forward] = []
        for _ in range(num_forwards):
            start_s, seconds, rows, length = _FORWARD.unpack_from(body, at)
            end = at + _FORWARD.size + length
            forwards.append(Forward(body[at + _FORWARD.size : end].decode(), start_s, seconds, rows))
            at = end
        arrivals.append(arrived_s)
        visits.append(tuple(forwards))
    if at != len(body):
        raise ValueError(f"its visits end at {at}")
    return arrivals, visits


def _encoded(timing: Timing) -> bytes:
    forwards = timing.forwards[:MAX_FORWARDS]
    parts = [_VISIT.pack(timing.arrived_s, len(forwards))]
    for one in forwards:
        name = one.operator.encode()
        parts += (_FORWARD.pack(one.start_s, one.seconds, one.rows, len(name)), name)
    return b"".join(parts)
