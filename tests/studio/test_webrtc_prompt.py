"""The jitter buffer gives what aiortc's own gives, and each picture with its last packet."""

from __future__ import annotations

import random

import pytest
from aiortc import RTCPeerConnection
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket
from rearview.studio.webrtc.prompt import PACKETS, PromptBuffer, make_prompt

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
    buffer = PromptBuffer(PACKETS, is_video=True)
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
    prompt = given(PromptBuffer(PACKETS, is_video=True), late)
    assert prompt[: len(plain)] == plain
    assert 0 <= len(prompt) - len(plain) <= 3, "what waits for a next picture there"


def test_where_packets_are_lost_pictures_stay_in_order_and_no_fewer_are_whole() -> None:
    sent = packets(200)
    whole = set(given(PromptBuffer(PACKETS, is_video=True), sent))
    sums = {JitterBuffer: 0, PromptBuffer: 0}
    for seed in range(50):
        chance = random.Random(seed)
        kept = sent[:1] + [packet for packet in sent[1:] if chance.random() > 0.01]
        late = disordered(kept, seed)
        for kind in sums:
            pictures = given(kind(PACKETS, is_video=True), late)
            assert pictures == sorted(set(pictures))
            sums[kind] += len(whole.intersection(pictures))
    assert sums[PromptBuffer] >= sums[JitterBuffer] > 50 * 100


async def test_this_aiortc_has_the_place_for_it() -> None:
    connection = RTCPeerConnection()
    make_prompt(connection.addTransceiver("video", "recvonly").receiver)
    await connection.close()
