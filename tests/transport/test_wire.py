"""What travels on a link comes out as it went in, and junk is told apart."""

from __future__ import annotations

import math
import random
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.contract.frame import NO_PLACE, Forward, Frame, Timing
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings, PromptChange, Rewarm
from rearview.contract.reference import ImageFile
from rearview.contract.session import SessionSpec
from rearview.contract.settings import NoiseRule, Settings
from rearview.transport.wire import (
    WireError,
    decode_frame,
    decode_json,
    decode_settings,
    decode_spec,
    encode_frame,
    encode_json,
    encode_settings,
    encode_spec,
)
from support.fuzz import few

pytestmark = pytest.mark.unit

SESSION = "0123456789abcdef" * 2
PLANES: list[dict[str, np.ndarray] | None] = [
    None,
    {},
    {"picture": np.arange(7, dtype=np.uint8)},
    {"picture": np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)},
    {name: np.linspace(-1, 1, 6 * 8 * 8, dtype=np.float32).reshape(6, 8, 8) for name in ("latent", "depth")},
    {"latent": np.linspace(-1, 1, 24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1)},
    {"empty": np.zeros((0, 3), np.uint8), "é": np.ones(1, np.uint8)},
]


def frame(planes: dict[str, np.ndarray] | None, timings: int = 2) -> Frame[Any]:
    return Frame(
        SESSION,
        (1 << 64) - 1,
        planes,
        settings_version=7,
        deadline_s=10.125,
        place=NO_PLACE if timings else (1 << 62),
        frame_index=(1 << 64) - 1,
        epoch=(1 << 32) - 1,
        timings=tuple(
            Timing(f"span-{i}", 0.5 * i, 0.25, 0.125, 1.7e9 + i, (Forward("denoise-0", 0.5, 0.25, 2),) * i)
            for i in range(timings)
        ),
        trace_id=bytes(range(16)) if timings else b"",
    )


def body(planes: dict[str, np.ndarray] | None, timings: int = 2) -> bytes:
    return b"".join(encode_frame(frame(planes, timings), 10.0))


NAMES = st.text(max_size=20)
ARRAYS = st.builds(
    lambda dtype, dims: np.arange(math.prod(dims), dtype=np.float64).reshape(dims).astype(dtype),
    st.sampled_from([np.uint8, np.float32, np.float64]),
    st.lists(st.integers(0, 4), max_size=4),
)
SECONDS = st.floats(0, 2**40, width=32)
FRAMES = st.builds(
    Frame,
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.integers(0, 2**64 - 1),
    st.none() | st.dictionaries(NAMES, ARRAYS, max_size=4),
    st.integers(0, 2**32 - 1),
    st.just(float("inf")) | st.integers(0, 2**20),
    st.integers(NO_PLACE, 2**63 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.builds(Timing, NAMES, SECONDS, SECONDS, SECONDS), max_size=6).map(tuple),
    st.just(b"") | st.binary(min_size=16, max_size=16).filter(any),
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1)),
)


@few(100)
@given(FRAMES)
def test_any_frame_comes_out_as_it_went_in(sent: Frame[Any]) -> None:
    received = decode_frame(bytearray(b"".join(encode_frame(sent, 0.0))), 0.0)
    assert replace(received, planes=None) == replace(sent, planes=None)
    assert (received.planes is None) == (sent.planes is None)
    assert list(received.planes or {}) == list(sent.planes or {})
    for name, plane in (sent.planes or {}).items():
        assert received.planes is not None
        assert (received.planes[name].dtype, received.planes[name].shape) == (plane.dtype, plane.shape)
        assert received.planes[name].tobytes() == plane.tobytes()


@few(100)
@given(FRAMES, st.data())
def test_any_cut_of_any_frame_is_an_error(sent: Frame[Any], data: st.DataObject) -> None:
    whole = b"".join(encode_frame(sent, 0.0))
    with pytest.raises(WireError):
        decode_frame(whole[: data.draw(st.integers(0, len(whole) - 1))], 0.0)


@few(100)
@given(FRAMES, st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_damage_is_an_error_or_a_frame_never_anything_else(
    sent: Frame[Any], damage: list[tuple[int, int]]
) -> None:
    junk = bytearray(b"".join(encode_frame(sent, 0.0)))
    for at, value in damage:
        junk[at % len(junk)] = value
    with suppress(WireError):
        assert isinstance(decode_frame(junk, 0.0), Frame)


def test_the_bytes_are_those_that_were_written_down() -> None:
    """A change of them is a change of version, once there is a release."""
    planes = {"latent": np.arange(2, dtype=np.float32).reshape(1, 2), "depth": np.zeros(1, np.uint8)}
    timing = Timing("encode", 0.5, 0.25, 0.125, 1024.5, (Forward("encode", 0.0, 1.0, 3),))
    sent = Frame(SESSION, 3, planes, 4, 10.5, 5, 6, 7, (timing,), bytes(range(16)), (8, 9))
    assert b"".join(encode_frame(sent, 10.0)).hex() == (
        f"{SESSION}07000000" "0500000000000000" "0600000000000000" "080000000000000009000000"
        "0300000000000000" "04000000"
        "000000000000e03f" "000102030405060708090a0b0c0d0e0f" "2600"
        "0102" "06656e636f6465" "0102" "0100000002000000" "066c6174656e74" "0001" "01000000" "056465707468"
        "0000003f" "0000803e" "0000003e" "000000000000803f" "00"
        "0000000000029040" "01" "00000000" "0000803f" "0300" "06656e636f6465"
    )  # fmt: skip
    lost = Frame(SESSION, 3, None, 4, 10.5, 5, 6, 7)
    assert b"".join(encode_frame(lost, 10.0)).hex() == (
        f"{SESSION}07000000" "0500000000000000" "0600000000000000" "000000000000000000000000"
        "0300000000000000" "04000000"
        "000000000000e03f" "00000000000000000000000000000000" "0200" "00ff"
    )  # fmt: skip


@pytest.mark.parametrize("planes", PLANES, ids=lambda p: "lost" if p is None else "+".join(p) or "nothing")
@pytest.mark.parametrize("timings", [0, 4])
def test_a_frame_comes_out_as_it_went_in(planes: dict[str, np.ndarray] | None, timings: int) -> None:
    sent, received = frame(planes, timings), decode_frame(body(planes, timings), 10.0)
    assert replace(received, planes=None) == replace(sent, planes=None)
    assert (received.planes is None) == (planes is None)
    assert list(received.planes or {}) == list(planes or {})
    for name, plane in (planes or {}).items():
        assert received.planes is not None
        assert received.planes[name].dtype == plane.dtype
        np.testing.assert_array_equal(received.planes[name], plane)


def test_a_deadline_is_on_the_clock_of_who_reads_it() -> None:
    assert decode_frame(body(None), 1000.0).deadline_s == 1000.125
    endless = Frame(SESSION, 0, None)
    assert decode_frame(b"".join(encode_frame(endless, 5.0)), 9.0).deadline_s == float("inf")


def test_a_plane_is_not_copied_when_it_is_sent() -> None:
    plane = np.zeros((64, 64, 3), np.uint8)
    _, part, _ = encode_frame(frame({"picture": plane}), 0.0)
    plane[0, 0, 0] = 9
    assert part[0] == 9


def test_every_cut_of_a_frame_is_an_error() -> None:
    whole = body(PLANES[4])
    for length in [*range(160), len(whole) // 2, len(whole) - 1]:
        with pytest.raises(WireError):
            decode_frame(whole[:length], 0.0)


def test_random_bytes_are_an_error_or_a_frame_never_anything_else() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        junk = bytearray(body(PLANES[4]))
        for _ in range(chance.randrange(1, 12)):
            junk[chance.randrange(len(junk))] = chance.randrange(256)
        try:
            decode_frame(bytes(junk), 0.0)
        except WireError:
            continue


def test_a_plane_of_more_bytes_than_there_can_be_is_an_error() -> None:
    whole = body({"picture": np.zeros((1, 1, 3), np.uint8)}, 0)
    dims = struct.pack("<3I", 1, 1, 3)
    assert whole.count(dims) == 1
    with pytest.raises(WireError):
        decode_frame(whole.replace(dims, bytes(b"\xff" * 12)), 0.0)


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"{", b"[]", b"3", b"null"])
def test_a_control_message_that_is_no_object_is_an_error(junk: bytes) -> None:
    with pytest.raises(WireError):
        decode_json(junk)


def test_a_session_and_its_settings_come_out_as_they_went_in() -> None:
    settings = Settings(
        prompt="é\0\U0001f600",
        strength=0.1 + 0.2,
        steps=3,
        seed=(1 << 64) - 1,
        noise_rule=NoiseRule.FRESH,
        reference=ImageFile.of(bytes(range(256))),
    )
    bank = BankSettings(BankPolicy.QUEUE, interval=2, max_frames=3, prompt_change=PromptChange.FADE)
    spec = SessionSpec(SESSION, 64, 72, 4, settings, "alpha", 2.5, bank, CacheSettings(scene_cut=Rewarm.KEEP))
    assert decode_settings(decode_json(encode_json(encode_settings(settings)))) == settings
    assert decode_spec(decode_json(encode_json(encode_spec(spec)))) == spec
    limited = SessionSpec(SESSION, 64, 64, 2, settings, max_kept_bytes=1 << 20)
    assert decode_spec(encode_spec(limited)).max_kept_bytes == 1 << 20


def test_a_session_with_senseless_fields_is_an_error() -> None:
    good = encode_spec(SessionSpec(SESSION, 64, 64, 2, Settings(prompt="a")))
    for change in (
        {"width": "wide"},
        {"settings": None},
        {"settings": {"noise_rule": 99}},
        {"max_steps": []},
    ):
        with pytest.raises(WireError):
            decode_spec({**good, **change})
