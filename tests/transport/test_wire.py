"""What travels on a link comes out as it went in, and junk is told apart."""

from __future__ import annotations

import random

import numpy as np
import pytest
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings, PromptChange, Rewarm
from rearview.contract.session import SessionSpec
from rearview.contract.settings import NoiseRule, Settings
from rearview.transport.wire import (
    FrameMessage,
    Timing,
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

pytestmark = pytest.mark.unit

SESSION = "0123456789abcdef" * 2
PAYLOADS = [
    None,
    np.arange(7, dtype=np.uint8),
    np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3),
    np.linspace(-1, 1, 6 * 8 * 8, dtype=np.float32).reshape(6, 8, 8),
    np.linspace(-1, 1, 24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1),
]


def message(payload: np.ndarray | None, timings: int = 2) -> FrameMessage:
    spans = [Timing(i, 0.5 * i, 0.25) for i in range(timings)]
    return FrameMessage(SESSION, (1 << 32) - 1, (1 << 64) - 1, 7, 0.125, payload, spans)


def body(payload: np.ndarray | None, timings: int = 2) -> bytes:
    return b"".join(encode_frame(message(payload, timings)))


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: "none" if p is None else f"{p.dtype}{p.shape}")
@pytest.mark.parametrize("timings", [0, 4])
def test_a_frame_comes_out_as_it_went_in(payload: np.ndarray | None, timings: int) -> None:
    sent, received = message(payload, timings), decode_frame(body(payload, timings))
    for name in ("session_id", "epoch", "ordinal", "settings_version", "budget_s", "timings"):
        assert getattr(received, name) == getattr(sent, name)
    if payload is None:
        assert received.payload is None
    else:
        assert received.payload is not None
        assert received.payload.dtype == payload.dtype
        np.testing.assert_array_equal(received.payload, payload)


def test_a_frame_without_a_deadline_has_an_infinite_budget() -> None:
    endless = FrameMessage(SESSION, 1, 0, 0, float("inf"), None)
    assert decode_frame(b"".join(encode_frame(endless))).budget_s == float("inf")


def test_a_payload_is_not_copied_when_it_is_sent() -> None:
    payload = np.zeros((64, 64, 3), np.uint8)
    _, part = encode_frame(message(payload))
    payload[0, 0, 0] = 9
    assert part[0] == 9


def test_every_cut_of_a_frame_is_an_error() -> None:
    whole = body(PAYLOADS[3])
    for length in [*range(80), len(whole) // 2, len(whole) - 1]:
        with pytest.raises(WireError):
            decode_frame(whole[:length])


def test_random_bytes_are_an_error_or_a_frame_never_anything_else() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        junk = bytearray(body(PAYLOADS[1]))
        for _ in range(chance.randrange(1, 12)):
            junk[chance.randrange(len(junk))] = chance.randrange(256)
        try:
            decode_frame(bytes(junk))
        except WireError:
            continue


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"{", b"[]", b"3", b"null"])
def test_a_control_message_that_is_no_object_is_an_error(junk: bytes) -> None:
    with pytest.raises(WireError):
        decode_json(junk)


def test_a_session_and_its_settings_come_out_as_they_went_in() -> None:
    settings = Settings(
        prompt="é\0\U0001f600", strength=0.1 + 0.2, steps=3, seed=(1 << 64) - 1, noise_rule=NoiseRule.FRESH
    )
    bank = BankSettings(BankPolicy.QUEUE, interval=2, max_frames=3, prompt_change=PromptChange.FADE)
    spec = SessionSpec(SESSION, 64, 72, 4, settings, "alpha", 2.5, bank, CacheSettings(scene_cut=Rewarm.KEEP))
    assert decode_settings(decode_json(encode_json(encode_settings(settings)))) == settings
    assert decode_spec(decode_json(encode_json(encode_spec(spec)))) == spec


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
