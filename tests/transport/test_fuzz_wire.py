"""Bytes that are nearly right: a link reads them or raises WireError, and takes no memory for lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from rearview.contract.frame import Frame, Timing
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.transport.wire import (
    Ack,
    WireError,
    decode_ack,
    decode_frame,
    decode_json,
    decode_settings,
    decode_spec,
    encode_ack,
    encode_frame,
    encode_json,
    encode_settings,
    encode_spec,
)
from rearview.transport.wire_v1 import decode_frame_v1, encode_frame_v1
from support.fuzz import mutants, tries

pytestmark = pytest.mark.unit

SESSION = "0123456789abcdef" * 2
SPANS = ("encode", "decode")
PLANES = {"latent": np.zeros((4, 8, 8), np.float32), "depth": np.ones((4, 8, 8), np.float32)}
PICTURE = {"picture": np.zeros((8, 8, 3), np.uint8)}


def frames(encode: Callable[[Frame[np.ndarray]], Sequence[bytes | memoryview]]) -> list[bytes]:
    timings = (Timing("encode", 0.1, 0.2),)
    kept = (Frame(SESSION, 3, planes, 1, 5.0, 4, 9, 2, timings) for planes in (None, PICTURE, PLANES))
    return [b"".join(bytes(part) for part in encode(frame)) for frame in kept]


def read_json(read: Callable[[Mapping[str, object]], object]) -> Callable[[bytes], object]:
    return lambda body: read(decode_json(body))


SPEC = SessionSpec(SESSION, 64, 64, 2, Settings("a prompt"), "alpha")
KINDS: dict[str, tuple[list[bytes], Callable[[bytes], object]]] = {
    "frame": (frames(lambda frame: encode_frame(frame, 0.0)), lambda body: decode_frame(body, 0.0)),
    "frame of version 1": (
        frames(lambda frame: encode_frame_v1(frame, 0.0, SPANS))[:2],
        lambda body: decode_frame_v1(body, 0.0, SPANS, has_depth=False),
    ),
    "ack": ([encode_ack(Ack(SESSION, 3, 9))], decode_ack),
    "settings": ([encode_json(encode_settings(SPEC.settings))], read_json(decode_settings)),
    "spec": ([encode_json(encode_spec(SPEC))], read_json(decode_spec)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_nearly_a_message_are_one_or_a_wire_error(kind: str) -> None:
    originals, decode = KINDS[kind]
    refused = 0
    for body in mutants(originals, tries(1500)):
        try:
            decode(body)
        except WireError:
            refused += 1
    assert refused > 100
