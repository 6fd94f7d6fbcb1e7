"""What travels on a link between replicas: small binary headers, raw bytes, no pickles.

    message  = length u32 | kind u8 | body                       (length counts the body)
    ack      = session 16 bytes | epoch u32 | ordinal u64
    note     = session 16 bytes | epoch u32 | ordinal i64 | UTF-8
    frame    = header | outline | queue f32 * spans | compute f32 * spans | device f32 * spans
               | bytes of the planes | of a traced frame its visits
    outline  = spans u8 | planes u8 | name of a span * spans | plane * planes
    plane    = type u8 | number of dims u8 | dims u32 * n | name
    name     = length u8 | UTF-8
    others   = JSON

A frame carries its remaining budget, since clocks differ. So are frames from version 2 on; `wire_v1` has the
one before, and `codec` picks that of a lane. An outline seldom changes: it is read once, and then known.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rearview.contract.frame import Frame, Timing
from rearview.contract.lease import Lease
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.errors import InvalidRequest
from rearview.transport.visits import decode_visits, encode_visits

__all__ = [
    "SINCE",
    "Ack",
    "Body",
    "Kind",
    "Note",
    "WireError",
    "decode_ack",
    "decode_frame",
    "decode_json",
    "decode_note",
    "decode_settings",
    "decode_spec",
    "encode_ack",
    "encode_frame",
    "encode_json",
    "encode_note",
    "encode_settings",
    "encode_spec",
    "frame_head",
    "plane_bytes",
]

Body: TypeAlias = bytes | bytearray
"""What follows the prefix of a message. One that has come is a bytearray, and nobody else's."""


class Kind(IntEnum):
    """The kinds of message."""

    FRAME = 1
    """A frame, or its tombstone, to the next span."""
    SETTINGS = 2
    """A new version of a session's settings; precedes the first frame under it."""
    OPEN = 3
    """Request: take a slot for a session and learn where its frames go next."""
    CLOSE = 4
    """Forget a session."""
    REPLY = 5
    """Answer to a request."""
    DRAINING = 6
    """The replica will stop: no new sessions."""
    LOST = 7
    """To the owner: its session is cut off here. With `hop`, the index of this span: the link to the next
    one is gone, and outputs are kept. Without it another owner has the session, with `closed` to end it."""
    ACK = 8
    """To the hop before: outputs up to an ordinal are no longer needed."""
    ATTACH = 9
    """Request: adopt a session that is here, and learn where it stands."""
    FREEZE = 10
    """Request: run a session's frames up to an ordinal and hold later ones; learn which it is."""
    THAW = 11
    """Let in what was held."""
    PULL = 12
    """Over a connection of its own (`bulk`): what a session is."""
    PART = 13
    """Bytes of what was pulled."""
    END = 14
    """Nothing more comes of it; with a reason, it was refused."""
    NOTE = 15
    """To the first span: what whoever adopts a session must know and no frame tells."""
    ANSWER = 16
    """A frame to the last span: its picture as its client gets it, to keep in place of the pixels."""
    DROPPED = 17
    """To the first span: frames that have no picture and never come, for whoever adopts the session."""
    HEARTBEAT = 20
    """From a replica to whoever has dialled it: it is alive, and what its engine does (`beat`)."""
    CONDEMN = 21
    """To a replica: it was taken for dead, and its sessions go on elsewhere."""
    CAPACITY = 22
    """From a replica to whoever has dialled it: what placement must know of it that has changed."""
    STANDING = 23
    """Request: whether a session could be adopted. Nothing changes by it."""


SINCE: Mapping[Kind, int] = {kind: 3 if kind >= Kind.CAPACITY else 2 for kind in Kind if kind > Kind.LOST}
"""The version from which a kind may occur; the others are in every one."""


class WireError(ValueError):
    """A message that cannot be read: the peer is not one of ours, or of another version."""


class Ack(NamedTuple):
    """An owner's or a span's word to the hop before it."""

    session_id: str
    epoch: int
    ordinal: int
    """Outputs up to this one are no longer needed."""


class Note(NamedTuple):
    """What an ingress leaves at the first span for the one that may come after it."""

    session_id: str
    epoch: int
    begins: int
    """It holds if the lane has been given this ordinal; -1: in any case."""
    text: str
    """For the ingress to read."""


_HEADER = struct.Struct("<16sIqQqiQId16sH")
"""Session, epoch, place, frame index, presentation offset (seconds, nanoseconds), ordinal, settings version,
budget, trace, bytes of the outline."""
_HEAD = struct.Struct("<16sI")
"""Session and epoch, the first fields of a frame in every version."""
_ACK = struct.Struct("<16sIQ")
_NOTE = struct.Struct("<16sIq")
_COUNTS = struct.Struct("<BB")
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
_LOST = 255  # In place of a number of planes.
KNOWN_OUTLINES = 256
"""That are remembered: those of the sizes and methods in use, by span and with or without timings."""
_NO_TRACE = bytes(16)
_SETTINGS = TypeAdapter(Settings)
_SPEC = TypeAdapter(SessionSpec)
_LEASE = TypeAdapter(Lease)


class _Plane(NamedTuple):
    """What is said of a plane beside its bytes."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.dims) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Outline:
    """What a frame consists of."""

    spans: tuple[str, ...]
    """Names of those that it has left."""
    planes: tuple[_Plane, ...] | None
    """None: it was lost."""
    seconds: struct.Struct
    """Of its times in the spans."""
    num_bytes: int
    """Of all that follows the outline, but for the visits."""

    @classmethod
    def of(cls, spans: Sequence[str], planes: Sequence[_Plane] | None) -> _Outline:
        """Raises ValueError if two planes have one name."""
        if len({plane.name for plane in planes or ()}) != len(planes or ()):
            raise ValueError("two planes have one name")
        seconds = struct.Struct(f"<{3 * len(spans)}f")
        num_bytes = seconds.size + sum(plane.num_bytes for plane in planes or ())
        return cls(tuple(spans), None if planes is None else tuple(planes), seconds, num_bytes)


def encode_frame(frame: Frame[NDArray[Any]], now: float) -> Sequence[bytes | memoryview]:
    """The body in parts, so that planes are not copied. `now`: on the clock of the frame's deadline."""
    planes, timings, trace = frame.planes, frame.timings, frame.trace_id or _NO_TRACE
    shapes = None if planes is None else [_Plane(name, p.dtype, p.shape) for name, p in planes.items()]
    outline = _write_outline(tuple([t.span for t in timings]), None if shapes is None else tuple(shapes))
    header = _HEADER.pack(
        bytes.fromhex(frame.session_id),
        frame.epoch,
        frame.place,
        frame.frame_index,
        *frame.presentation_offset,
        frame.ordinal,
        frame.settings_version,
        frame.deadline_s - now,
        trace,
        len(outline),
    )
    seconds = [t.queue_s for t in timings] + [t.compute_s for t in timings] + [t.device_s for t in timings]
    full = [plane for plane in (planes or {}).values() if plane.size]
    contents = [np.ascontiguousarray(plane).data.cast("B") for plane in full]
    visits = [] if trace == _NO_TRACE else [encode_visits(timings)]
    return header + outline + struct.pack(f"<{len(seconds)}f", *seconds), *contents, *visits


def decode_frame(body: Body, now: float) -> Frame[NDArray[Any]]:
    """Undo `encode_frame`; planes are views of `body`, deadlines on the clock of `now`. Raises WireError."""
    try:
        return _decode_frame(body, now)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise WireError(f"frame of {len(body)} bytes: {error}") from None


def _decode_frame(body: Body, now: float) -> Frame[NDArray[Any]]:
    session, epoch, place, index, *offset, ordinal, version, budget_s, trace, size = _HEADER.unpack_from(body)
    at = _HEADER.size + size
    outline = _read_outline(bytes(body[_HEADER.size : at]))
    is_traced, end = trace != _NO_TRACE, at + outline.num_bytes
    if end > len(body) or (not is_traced and end != len(body)):
        raise ValueError(f"its parts end at {end}")
    seconds, n = outline.seconds.unpack_from(body, at), len(outline.spans)
    visits = decode_visits(body, end, n) if is_traced else ()
    at += outline.seconds.size
    planes: dict[str, NDArray[Any]] = {}
    for plane in outline.planes or ():
        planes[plane.name] = np.ndarray(plane.dims, plane.dtype, body, at)
        at += planes[plane.name].nbytes
    return Frame(
        session.hex(),
        ordinal,
        None if outline.planes is None else planes,
        version,
        now + budget_s,
        place,
        index,
        epoch,
        tuple(map(Timing, outline.spans, seconds[:n], seconds[n : 2 * n], seconds[2 * n :], *visits)),
        trace if is_traced else b"",
        (offset[0], offset[1]),
    )


@functools.lru_cache(KNOWN_OUTLINES)
def _write_outline(spans: tuple[str, ...], planes: tuple[_Plane, ...] | None) -> bytes:
    parts = [_COUNTS.pack(len(spans), _LOST if planes is None else len(planes)), *map(_write_name, spans)]
    for name, dtype, dims in planes or ():
        parts += (_COUNTS.pack(_DTYPES.index(dtype), len(dims)), struct.pack(f"<{len(dims)}I", *dims))
        parts.append(_write_name(name))
    return b"".join(parts)


@functools.lru_cache(KNOWN_OUTLINES)
def _read_outline(outline: bytes) -> _Outline:
    """Undo `_write_outline`. Raises as `struct` does, IndexError and ValueError."""
    num_spans, num_planes = _COUNTS.unpack_from(outline)
    at, spans, planes = _COUNTS.size, [], []
    for _ in range(num_spans):
        span, at = _read_name(outline, at)
        spans.append(span)
    for _ in range(0 if num_planes == _LOST else num_planes):
        code, ndim = _COUNTS.unpack_from(outline, at)
        at += _COUNTS.size
        dims = struct.unpack_from(f"<{ndim}I", outline, at)
        name, at = _read_name(outline, at + 4 * ndim)
        planes.append(_Plane(name, _DTYPES[code], dims))
    if at != len(outline):
        raise ValueError(f"its outline ends at {at}")
    return _Outline.of(spans, None if num_planes == _LOST else planes)


def _write_name(name: str) -> bytes:
    text = name.encode()
    return bytes([len(text)]) + text


def _read_name(outline: bytes, at: int) -> tuple[str, int]:
    """The name at `at`, and where it ends."""
    end = at + 1 + outline[at]
    if end > len(outline):
        raise ValueError(f"a name ends at {end}")
    return outline[at + 1 : end].decode(), end


def frame_head(body: Body) -> tuple[str, int]:
    """Session and epoch of a frame of any version, so that a receiver knows how to read the rest, and
    whether it wants to. Raises WireError.
    """
    try:
        session, epoch = _HEAD.unpack_from(body)
    except struct.error as error:
        raise WireError(f"frame of {len(body)} bytes: {error}") from None
    return session.hex(), epoch


def encode_ack(ack: Ack) -> bytes:
    """Body of an acknowledgement."""
    return _ACK.pack(bytes.fromhex(ack.session_id), ack.epoch, ack.ordinal)


def decode_ack(body: Body) -> Ack:
    """Undo `encode_ack`. Raises WireError."""
    try:
        session, epoch, ordinal = _ACK.unpack(body)
    except struct.error as error:
        raise WireError(f"acknowledgement of {len(body)} bytes: {error}") from None
    return Ack(session.hex(), epoch, ordinal)


def encode_note(note: Note) -> bytes:
    """Body of a note."""
    return _NOTE.pack(bytes.fromhex(note.session_id), note.epoch, note.begins) + note.text.encode()


def decode_note(body: Body) -> Note:
    """Undo `encode_note`. Raises WireError."""
    try:
        session, epoch, begins = _NOTE.unpack_from(body)
        return Note(session.hex(), epoch, begins, body[_NOTE.size :].decode())
    except (struct.error, UnicodeDecodeError) as error:
        raise WireError(f"note of {len(body)} bytes: {error}") from None


def plane_bytes(frame: Frame[NDArray[Any]]) -> int:
    """Bytes of a frame's planes."""
    return sum(plane.nbytes for plane in (frame.planes or {}).values())


def encode_json(content: Mapping[str, Any]) -> bytes:
    """Body of a control message."""
    return json.dumps(content, separators=(",", ":")).encode()


def decode_json(body: Body) -> dict[str, Any]:
    """Undo `encode_json`. Raises WireError."""
    try:
        content = json.loads(body)
    except ValueError as error:
        raise WireError(str(error)) from None
    if not isinstance(content, dict):
        raise WireError("a control message is an object")
    return content


def encode_settings(settings: Settings) -> dict[str, Any]:
    """Settings as JSON content."""
    content: dict[str, Any] = _SETTINGS.dump_python(settings, mode="json")
    return content


def decode_settings(content: Mapping[str, Any]) -> Settings:
    """Undo `encode_settings`. Raises WireError."""
    try:
        return _SETTINGS.validate_python(content)
    except ValidationError as error:
        raise WireError(f"settings: {error.error_count()} fields cannot be read") from None
    except InvalidRequest as error:
        raise WireError(f"settings: {error}") from None


def encode_lease(lease: Lease) -> dict[str, Any]:
    """A lease as JSON content."""
    content: dict[str, Any] = _LEASE.dump_python(lease, mode="json")
    return content


def decode_lease(content: Mapping[str, Any]) -> Lease:
    """Undo `encode_lease`. Raises WireError."""
    try:
        return _LEASE.validate_python(content)
    except ValidationError as error:
        raise WireError(f"lease: {error.error_count()} fields cannot be read") from None


def encode_spec(spec: SessionSpec) -> dict[str, Any]:
    """A session as JSON content."""
    content: dict[str, Any] = _SPEC.dump_python(spec, mode="json")
    return content


def decode_spec(content: Mapping[str, Any]) -> SessionSpec:
    """Undo `encode_spec`. Raises WireError."""
    try:
        return _SPEC.validate_python(content)
    except ValidationError as error:
        raise WireError(f"session: {error.error_count()} fields cannot be read") from None
    except InvalidRequest as error:
        raise WireError(f"session: {error}") from None
