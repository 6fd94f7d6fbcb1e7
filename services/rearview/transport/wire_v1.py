"""Version 1 of a frame, for lanes in which a replica of the release before takes part.

    frame    = header | dims u32 * ndim | timing * count | payload bytes
    timing   = span u8 | queue f32 | compute f32

It knows no planes: a payload is a picture, one latent, or a stack of latents in the order of latent, depth
and anchor. What a stack of two means, only the session says. Spans are told by their index in the topology.
It has neither place nor frame index: frames come out with `NO_PLACE` and 0. Nor does it know controls: a
frame with any goes as one that was lost.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rearview.contract.frame import ANCHOR, DEPTH, LATENT, PICTURE, Frame, Timing, is_for_controls
from rearview.transport.wire import Body, WireError

__all__ = ["decode_frame_v1", "encode_frame_v1"]

_HEADER = struct.Struct("<16sIQIdBBB")
"""Session, epoch, ordinal, settings version, budget, type, dims, timings."""
_TIMING = struct.Struct("<Bff")
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
_LOST = 255
"""In place of a type."""
_STACK = (LATENT, DEPTH, ANCHOR)

Planes = Mapping[str, NDArray[Any]]


def encode_frame_v1(
    frame: Frame[NDArray[Any]], now: float, spans: Sequence[str]
) -> Sequence[bytes | memoryview]:
    """The body in parts. `spans`: names of the topology's. Raises WireError for what version 1 cannot say."""
    planes = frame.planes
    payload = None if planes is None or any(map(is_for_controls, planes)) else _stacked(planes)
    shape = () if payload is None else payload.shape
    header = _HEADER.pack(
        bytes.fromhex(frame.session_id),
        frame.epoch,
        frame.ordinal,
        frame.settings_version,
        frame.deadline_s - now,
        _LOST if payload is None else _DTYPES.index(payload.dtype),
        len(shape),
        len(frame.timings),
    )
    dims = struct.pack(f"<{len(shape)}I", *shape)
    timings = b"".join(_TIMING.pack(spans.index(t.span), t.queue_s, t.compute_s) for t in frame.timings)
    if payload is None or not payload.size:
        return (header + dims + timings,)
    return header + dims + timings, np.ascontiguousarray(payload).data.cast("B")


def decode_frame_v1(body: Body, now: float, spans: Sequence[str], *, has_depth: bool) -> Frame[NDArray[Any]]:
    """Undo `encode_frame_v1`; planes are views of `body`. `has_depth`: whether frames of the session carry
    their depth from encode to the last step. Raises WireError.
    """
    try:
        session, epoch, ordinal, version, budget_s, code, ndim, count = _HEADER.unpack_from(body)
        at = _HEADER.size
        shape = struct.unpack_from(f"<{ndim}I", body, at)
        at += 4 * ndim
        numbers = [_TIMING.unpack_from(body, at + i * _TIMING.size) for i in range(count)]
        timings = tuple(Timing(spans[index], *seconds) for index, *seconds in numbers)
        at += count * _TIMING.size
        planes = None
        if code != _LOST:
            dtype, size = _DTYPES[code], math.prod(shape)
            payload = np.frombuffer(body, dtype, size, at) if size else np.empty(0, dtype)
            planes = _apart(payload.reshape(shape), has_depth=has_depth)
            at += payload.nbytes
        if at != len(body):
            raise ValueError(f"its parts end at {at}")
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise WireError(f"frame of {len(body)} bytes: {error}") from None
    return Frame(
        session_id=session.hex(),
        ordinal=ordinal,
        planes=planes,
        settings_version=version,
        deadline_s=now + budget_s,
        epoch=epoch,
        timings=timings,
    )


def _stacked(planes: Planes) -> NDArray[Any]:
    if planes.keys() == {PICTURE}:
        return planes[PICTURE]
    parts = [planes[name] for name in _STACK if name in planes]
    if not parts or len(parts) != len(planes):
        raise WireError(f"version 1 has no place for {', '.join(sorted(planes)) or 'a frame without planes'}")
    return parts[0] if len(parts) == 1 else np.stack(parts)


def _apart(payload: NDArray[Any], *, has_depth: bool) -> Planes:
    """The planes of a payload; raises ValueError if it is none that version 1 sends."""
    if payload.dtype == np.uint8:
        return {PICTURE: payload}
    if payload.ndim == 3:
        return {LATENT: payload}
    stacks = {2: (LATENT, DEPTH if has_depth else ANCHOR), 3: _STACK}
    if payload.ndim != 4 or len(payload) not in stacks:
        raise ValueError(f"a payload of shape {payload.shape}")
    return dict(zip(stacks[len(payload)], payload, strict=True))
