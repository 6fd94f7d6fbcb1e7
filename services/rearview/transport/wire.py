"""What travels on a link between replicas: small binary headers, raw bytes, no pickles.

    message  = length u32 | kind u8 | body                       (length counts the body)
    ack      = session 16 bytes | epoch u32 | ordinal u64
    note     = session 16 bytes | epoch u32 | ordinal i64 | UTF-8
    frame    = header | timing * count | plane * count | bytes of the planes, one after another
    timing   = queue f32 | compute f32 | span name
    plane    = type u8 | number of dims u8 | dims u32 * n | plane name
    name     = length u8 | UTF-8
    others   = JSON

A frame carries its remaining budget, never a clock value: clocks differ between processes. This is
version 2 of the frame; `wire_v1` has the one before, and `codec` picks the version of a lane.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rearview.contract.frame import Frame, Timing
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings

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
    HEARTBEAT = 20
    """From a replica to whoever has dialled it: it is alive, and what its engine does (`beat`)."""
    CONDEMN = 21
    """To a replica: it was taken for dead, and its sessions go on elsewhere."""


SINCE: Mapping[Kind, int] = dict.fromkeys([kind for kind in Kind if kind > Kind.LOST], 2)
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


_HEADER = struct.Struct("<16sIqQqiQId16sBB")
"""Session, epoch, place, frame index, presentation offset (seconds, nanoseconds), ordinal, settings version,
budget, trace, timings, planes."""
_HEAD = struct.Struct("<16sI")
"""Session and epoch, the first fields of a frame in every version."""
_ACK = struct.Struct("<16sIQ")
_NOTE = struct.Struct("<16sIq")
_TIMING = struct.Struct("<ff")
_PLANE = struct.Struct("<BB")
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
_LOST = 255
"""In place of a number of planes."""
_NO_TRACE = bytes(16)
_SETTINGS = TypeAdapter(Settings)
_SPEC = TypeAdapter(SessionSpec)


def encode_frame(frame: Frame[NDArray[Any]], now: float) -> Sequence[bytes | memoryview]:
    """The body in parts, so that planes are not copied. `now`: on the clock of the frame's deadline."""
    planes = frame.planes
    head = [
        _HEADER.pack(
            bytes.fromhex(frame.session_id),
            frame.epoch,
            frame.place,
            frame.frame_index,
            *frame.presentation_offset,
            frame.ordinal,
            frame.settings_version,
            frame.deadline_s - now,
            frame.trace_id or _NO_TRACE,
            len(frame.timings),
            _LOST if planes is None else len(planes),
        )
    ]
    for timing in frame.timings:
        head += (_TIMING.pack(timing.queue_s, timing.compute_s), _encode_name(timing.span))
    for name, plane in (planes or {}).items():
        dims = struct.pack(f"<{plane.ndim}I", *plane.shape)
        head += (_PLANE.pack(_DTYPES.index(plane.dtype), plane.ndim), dims, _encode_name(name))
    full = (plane for plane in (planes or {}).values() if plane.size)
    contents = (np.ascontiguousarray(plane).data.cast("B") for plane in full)
    return b"".join(head), *contents


def decode_frame(body: Body, now: float) -> Frame[NDArray[Any]]:
    """Undo `encode_frame`; planes are views of `body`, deadlines on the clock of `now`. Raises WireError."""
    try:
        return _decode_frame(body, now)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise WireError(f"frame of {len(body)} bytes: {error}") from None


def _decode_frame(body: Body, now: float) -> Frame[NDArray[Any]]:
    session, epoch, place, index, *offset, ordinal, version, budget_s, trace, num_timings, num_planes = (
        _HEADER.unpack_from(body)
    )
    at, timings, shapes = _HEADER.size, [], {}
    for _ in range(num_timings):
        queue_s, compute_s = _TIMING.unpack_from(body, at)
        span, at = _decode_name(body, at + _TIMING.size)
        timings.append(Timing(span, queue_s, compute_s))
    for _ in range(0 if num_planes == _LOST else num_planes):
        code, ndim = _PLANE.unpack_from(body, at)
        at += _PLANE.size
        dims = struct.unpack_from(f"<{ndim}I", body, at)
        name, at = _decode_name(body, at + 4 * ndim)
        shapes[name] = _DTYPES[code], dims
    planes = {}
    for name, (dtype, dims) in shapes.items():
        count = math.prod(dims)
        planes[name] = np.frombuffer(body, dtype, count, at).reshape(dims) if count else np.empty(dims, dtype)
        at += count * dtype.itemsize
    if at != len(body) or len(shapes) != (0 if num_planes == _LOST else num_planes):
        raise ValueError(f"its parts end at {at}")
    return Frame(
        session_id=session.hex(),
        ordinal=ordinal,
        planes=None if num_planes == _LOST else planes,
        settings_version=version,
        deadline_s=now + budget_s,
        place=place,
        frame_index=index,
        presentation_offset=(offset[0], offset[1]),
        epoch=epoch,
        timings=tuple(timings),
        trace_id=b"" if trace == _NO_TRACE else trace,
    )


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


@functools.lru_cache(256)  # Of spans and planes: a handful.
def _encode_name(name: str) -> bytes:
    text = name.encode()
    return bytes([len(text)]) + text


def _decode_name(body: Body, at: int) -> tuple[str, int]:
    """The name at `at`, and where it ends."""
    end = at + 1 + body[at]
    if end > len(body):
        raise ValueError(f"a name ends at {end}")
    return body[at + 1 : end].decode(), end


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
