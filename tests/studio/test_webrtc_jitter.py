"""The jitter buffer gives what aiortc's own gives, and each picture with its last packet."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from aiortc import RTCPeerConnection
from aiortc.codecs.h264 import H264Encoder, h264_depayload
from aiortc.codecs.vpx import Vp8Encoder, vp8_depayload
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket
from av import VideoFrame
from rearview.studio.webrtc.jitter import MAX_BACKLOG, PACKETS, EagerBuffer, make_eager

pytestmark = pytest.mark.unit


def packets(pictures: int, start: int = 65_500) -> list[RtpPacket]:
    """Of pictures of one to five packets; sequence numbers wrap."""
    found = []
    for picture in range(pictures):
        size = 1 + picture % 5
        for part in range(size):
            number = (start + len(found)) % 65_536
            packet = RtpPacket(sequence_number=number, timestamp=3000 * picture, marker=int(part == size - 1))
            packet._data = b"%d.%d " % (picture, part)
            found.append(packet)
    return found


def given(buffer: JitterBuffer, order: list[RtpPacket]) -> list[tuple[int, bytes]]:
    frames = (buffer.add(packet)[1] for packet in order)
    return [(frame.timestamp, frame.data) for frame in frames if frame is not None]


def test_a_picture_comes_with_its_last_packet() -> None:
    buffer = EagerBuffer()
    for packet in packets(40):
        _, frame = buffer.add(packet)
        assert (frame is not None) == bool(packet.marker)


def disordered(order: list[RtpPacket], seed: int) -> list[RtpPacket]:
    """All but the first one may be late by four places."""
    chance = random.Random(seed)
    places = {id(packet): place + chance.choice((0, 0, 0, 4)) for place, packet in enumerate(order)}
    return order[:1] + sorted(order[1:], key=lambda packet: places[id(packet)])


@pytest.mark.parametrize("seed", range(10))
def test_pictures_are_those_of_aiortc_whatever_the_order_of_packets(seed: int) -> None:
    late = disordered(packets(60), seed)
    plain = given(JitterBuffer(PACKETS, is_video=True), late)
    eager = given(EagerBuffer(), late)
    assert eager[: len(plain)] == plain
    assert 0 <= len(eager) - len(plain) <= 3, "what waits for a next picture there"


def test_where_packets_are_lost_pictures_stay_in_order_and_no_fewer_are_whole() -> None:
    sent = packets(200)
    whole = set(given(EagerBuffer(), sent))
    sums = {"plain": 0, "eager": 0}
    for seed in range(50):
        chance = random.Random(seed)
        kept = sent[:1] + [packet for packet in sent[1:] if chance.random() > 0.01]
        late = disordered(kept, seed)
        for kind, buffer in (("plain", JitterBuffer(PACKETS, is_video=True)), ("eager", EagerBuffer())):
            pictures = given(buffer, late)
            assert pictures == sorted(set(pictures))
            sums[kind] += len(whole.intersection(pictures))
    assert sums["eager"] >= sums["plain"] > 50 * 100


def encoded(kind: type, keys: set[int]) -> list[RtpPacket]:
    """Forty pictures of a codec of aiortc's, one packet each."""
    encoder, found = kind(), []
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for picture in range(40):
        frame = VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = 3000 * picture, Fraction(1, 90_000)
        payloads, _ = encoder.encode(frame, picture in keys)
        depayload = vp8_depayload if kind is Vp8Encoder else h264_depayload
        packet = RtpPacket(sequence_number=picture, timestamp=3000 * picture, marker=1)
        packet._data = b"".join(depayload(payload) for payload in payloads)
        found.append(packet)
    return found


@pytest.mark.parametrize("kind", [Vp8Encoder, H264Encoder])
def test_a_decoder_that_is_behind_goes_on_with_a_key_frame(kind: type) -> None:
    waiting = 0
    buffer = EagerBuffer(lambda: waiting)
    given, asked = [], []
    for number, packet in enumerate(encoded(kind, {0, 12, 33})):
        waiting = MAX_BACKLOG if number == 10 else 3 if 10 < number < 20 else 0
        asks, picture = buffer.add(packet)
        given += [number] if picture is not None else []
        asked += [number] if asks else []
    # At 12 a key frame comes while pictures still wait: it is left out, too.
    assert given == [*range(10), *range(33, 40)]
    assert asked == [20]


async def test_this_aiortc_has_the_place_for_it() -> None:
    connection = RTCPeerConnection()
    make_eager(connection.addTransceiver("video", "recvonly").receiver)
    await connection.close()
