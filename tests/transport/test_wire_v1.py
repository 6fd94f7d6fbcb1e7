"""Version 1 of a frame: its bytes, and what becomes of planes that it does not know."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from rearview.contract.frame import ANCHOR, DEPTH, LATENT, NO_PLACE, PICTURE, Frame, Timing, control_plane
from rearview.transport.codec import FrameCodec
from rearview.transport.wire import Ack, WireError, decode_ack, encode_ack, frame_head

pytestmark = pytest.mark.unit

SESSION = "0123456789abcdef" * 2
SPANS = ("encode", "denoise", "decode")
NOW_S = 10.0


def latents(*names: str, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(len(names))
    return {name: chance.standard_normal((4, 8, 8)).astype(dtype) for name in names}


def frame(planes: dict[str, np.ndarray] | None) -> Frame[Any]:
    timings = (Timing("encode", 0.5, 0.25), Timing("decode", 1.0, 2.0))
    return Frame(SESSION, 9, planes, 7, NOW_S + 0.125, 5, 77, 3, timings, bytes(16))


def sent(codec: FrameCodec, planes: dict[str, np.ndarray] | None) -> bytes:
    return b"".join(codec.encode(frame(planes), NOW_S))


CASES = [
    (None, False),
    ({PICTURE: np.arange(7, dtype=np.uint8)}, False),
    ({PICTURE: np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)}, True),
    ({PICTURE: np.zeros(0, np.uint8)}, False),
    (latents(LATENT), False),
    (latents(LATENT, dtype=np.float64), True),
    (latents(LATENT, DEPTH), True),
    (latents(LATENT, ANCHOR), False),
    (latents(LATENT, DEPTH, ANCHOR), True),
]


@pytest.mark.parametrize(("planes", "has_depth"), CASES)
def test_the_session_says_what_a_stack_means(planes: dict[str, np.ndarray] | None, has_depth: bool) -> None:
    codec = FrameCodec(1, SPANS, has_depth)
    body = sent(codec, planes)
    received = codec.decode(body, NOW_S)
    assert frame_head(body) == (SESSION, 3)
    assert (received.place, received.frame_index, received.trace_id) == (NO_PLACE, 0, b"")
    assert (received.ordinal, received.settings_version, received.epoch) == (9, 7, 3)
    assert received.deadline_s == NOW_S + 0.125
    assert received.timings == frame(None).timings
    assert (received.planes is None) == (planes is None)
    assert list(received.planes or {}) == list(planes or {})
    for name, plane in (planes or {}).items():
        assert received.planes is not None
        assert received.planes[name].dtype == plane.dtype
        np.testing.assert_array_equal(received.planes[name], plane)


def test_the_bytes_are_those_of_the_release_before() -> None:
    planes = latents(LATENT, DEPTH)
    header = struct.pack("<16sIQIdBBB", bytes.fromhex(SESSION), 3, 9, 7, 0.125, 1, 4, 2)
    dims = struct.pack("<4I", 2, 4, 8, 8)
    timings = struct.pack("<Bff", 0, 0.5, 0.25) + struct.pack("<Bff", 2, 1.0, 2.0)
    payload = np.stack([planes[LATENT], planes[DEPTH]]).tobytes()
    assert sent(FrameCodec(1, SPANS, has_depth=True), planes) == header + dims + timings + payload


def test_a_frame_with_controls_goes_as_lost() -> None:
    """The release before has none: its client is told, and nobody gets a picture without them."""
    codec = FrameCodec(1, SPANS)
    shown = {control_plane("edges"): np.zeros((64, 64, 3), np.uint8)}
    received = codec.decode(sent(codec, {**latents(LATENT), **shown}), NOW_S)
    assert received.is_lost
    assert (received.ordinal, received.settings_version) == (9, 7)


def test_version_2_keeps_what_version_1_loses() -> None:
    codec = FrameCodec(2, SPANS)
    received = codec.decode(sent(codec, latents(LATENT, ANCHOR)), NOW_S)
    assert (received.place, received.frame_index) == (5, 77)
    assert list(received.planes or {}) == [LATENT, ANCHOR]


@pytest.mark.parametrize("planes", [{}, {"other": np.zeros(1, np.uint8)}, latents(LATENT, "other")])
def test_planes_that_version_1_cannot_say_are_an_error(planes: dict[str, np.ndarray]) -> None:
    with pytest.raises(WireError, match="no place"):
        sent(FrameCodec(1, SPANS), planes)


@pytest.mark.parametrize(
    "payload", [np.zeros((4, 4, 8, 8), np.float32), np.zeros(3, np.float32), np.float32(1.0)]
)
def test_a_payload_that_version_1_never_sends_is_an_error(payload: np.ndarray) -> None:
    with pytest.raises(WireError):
        FrameCodec(1, SPANS).decode(sent(FrameCodec(1, SPANS), {LATENT: np.asarray(payload)}), NOW_S)


def test_every_cut_of_a_frame_is_an_error() -> None:
    codec = FrameCodec(1, SPANS, has_depth=True)
    whole = sent(codec, latents(LATENT, DEPTH))
    for length in [*range(90), len(whole) // 2, len(whole) - 1]:
        with pytest.raises(WireError):
            codec.decode(whole[:length], NOW_S)


def test_random_bytes_are_an_error_or_a_frame_never_anything_else() -> None:
    chance, codec = random.Random(0), FrameCodec(1, SPANS)
    whole = sent(codec, latents(LATENT))
    for _ in range(2000):
        junk = bytearray(whole)
        for _ in range(chance.randrange(1, 12)):
            junk[chance.randrange(min(len(junk), 120))] = chance.randrange(256)
        try:
            codec.decode(bytes(junk), NOW_S)
        except WireError:
            continue


def test_an_acknowledgement_comes_out_as_it_went_in_and_junk_is_an_error() -> None:
    ack = Ack(SESSION, (1 << 32) - 1, (1 << 64) - 1)
    body = encode_ack(ack)
    assert decode_ack(body) == ack
    for junk in (b"", body[:-1], body + b"x"):
        with pytest.raises(WireError):
            decode_ack(junk)
    with pytest.raises(WireError):
        frame_head(body[:19])
