"""What travels on a link between replicas: small binary headers, raw bytes, no pickles.

    message  = length u32 | kind u8 | body                       (length counts the body)
    frame    = header | dims u32 * ndim | timings * count | payload bytes
    others   = JSON

A frame carries its remaining budget, never a clock value: clocks differ between processes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings

__all__ = [
    "FrameMessage",
    "Kind",
    "Timing",
    "decode_frame",
    "decode_json",
    "decode_settings",
    "decode_spec",
    "encode_frame",
    "encode_json",
    "encode_settings",
    "encode_spec",
]


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
    """To the owner: a session has ended here, since its next replica is gone or another owner has it."""


class WireError(ValueError):
    """A message that cannot be read: the peer is not one of ours, or of another version."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A frame's time in one span of its lane."""

    span: int
    """Index of the span in the topology."""
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class FrameMessage:
    """A frame on its way."""

    session_id: str
    """32 hex digits."""
    epoch: int
    ordinal: int
    settings_version: int
    budget_s: float
    """Seconds left until its deadline; infinite if it has none."""
    payload: NDArray[Any] | None
    """None: the frame was dropped by a fault; its ordinal is resolved."""
    timings: Sequence[Timing] = ()


_HEADER = struct.Struct("<16sIQIdBBB")
_TIMING = struct.Struct("<Bff")
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
_NO_PAYLOAD = 255
_SETTINGS = TypeAdapter(Settings)
_SPEC = TypeAdapter(SessionSpec)


def encode_frame(message: FrameMessage) -> Sequence[bytes | memoryview]:
    """The body in parts, so that the payload is not copied."""
    payload = message.payload
    code = _NO_PAYLOAD if payload is None else _DTYPES.index(payload.dtype)
    shape = () if payload is None else payload.shape
    header = _HEADER.pack(
        bytes.fromhex(message.session_id),
        message.epoch,
        message.ordinal,
        message.settings_version,
        message.budget_s,
        code,
        len(shape),
        len(message.timings),
    )
    dims = struct.pack(f"<{len(shape)}I", *shape)
    timings = b"".join(_TIMING.pack(t.span, t.queue_s, t.compute_s) for t in message.timings)
    if payload is None:
        return (header + timings,)
    return header + dims + timings, np.ascontiguousarray(payload).data.cast("B")


def decode_frame(body: bytes) -> FrameMessage:
    """Undo `encode_frame`; the payload is a view of `body`. Raises WireError."""
    try:
        session, epoch, ordinal, version, budget_s, code, ndim, count = _HEADER.unpack_from(body)
        at = _HEADER.size
        shape = struct.unpack_from(f"<{ndim}I", body, at)
        at += 4 * ndim
        timings = [Timing(*_TIMING.unpack_from(body, at + i * _TIMING.size)) for i in range(count)]
        at += count * _TIMING.size
        payload = None
        if code != _NO_PAYLOAD:
            payload = np.frombuffer(body, _DTYPES[code], offset=at).reshape(shape)
    except (struct.error, IndexError, ValueError) as error:
        raise WireError(f"frame of {len(body)} bytes: {error}") from None
    return FrameMessage(session.hex(), epoch, ordinal, version, budget_s, payload, timings)


def encode_json(content: Mapping[str, Any]) -> bytes:
    """Body of a control message."""
    return json.dumps(content, separators=(",", ":")).encode()


def decode_json(body: bytes) -> dict[str, Any]:
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
