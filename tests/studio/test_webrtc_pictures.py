"""Frames as sessions take them, and programs as watchers see them: by values alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import simplejpeg
from av import VideoFrame
from rearview.errors import ConfigError
from rearview.studio.pictures import Screen, blended, jpeg_of, shares
from rearview.studio.program import Program
from rearview.studio.protocol import MAX_FRAME_BYTES, ProgramAsked
from rearview.studio.said import text_of
from rearview.studio.webrtc.ice import Ice, IceServer

pytestmark = pytest.mark.unit

RED, GREEN, BLUE = (200, 40, 40), (40, 180, 60), (40, 60, 210)


def plain(colour: tuple[int, int, int], width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((height, width, 3), colour, np.uint8)


def jpeg(colour: tuple[int, int, int], side: int = 64) -> bytes:
    return simplejpeg.encode_jpeg(plain(colour, side, side), 95, "RGB", "420")


def mean(frame: VideoFrame) -> np.ndarray[Any, Any]:
    return frame.to_ndarray(format="rgb24").mean((0, 1))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64), (64, 128), (640, 360), (32, 32)])
def test_a_frame_is_cut_to_the_sessions_shape_from_its_middle(width: int, height: int) -> None:
    # Green in the middle, red left and right of it, blue above and below.
    picture = plain(RED, 640, 480)
    picture[:, 80:560] = BLUE
    picture[80:400, 80:560] = GREEN
    data = jpeg_of(VideoFrame.from_ndarray(picture, format="rgb24"), width, height)
    cut = simplejpeg.decode_jpeg(data, "RGB")
    assert cut.shape == (height, width, 3)
    middle = cut[height // 4 : -height // 4, width // 4 : -width // 4].mean((0, 1))
    assert np.abs(middle - GREEN).max() < 12
    if width == height:
        assert np.abs(cut[:, : max(1, width // 32)].mean((0, 1)) - RED).max() > 60, "the sides are cut off"


def test_a_frame_that_compresses_badly_is_one_that_the_service_takes() -> None:
    noise = np.random.default_rng(0).choice(np.array((0, 255), np.uint8), (1024, 1024, 3))
    data = jpeg_of(VideoFrame.from_ndarray(noise, format="rgb24"), 1024, 1024)
    assert MAX_FRAME_BYTES / 2 < len(data) <= MAX_FRAME_BYTES


def test_shares_are_those_of_a_viewers_page() -> None:
    assert shares({}, 0.0) == {}
    assert shares({"a": 3, "b": None, "mix": 0.0}, 9.0) == {3: 1.0}
    assert shares({"a": 0, "b": 1, "mix": 0.25}, 9.0) == {0: 0.75, 1: 0.25}
    start = {"a": 2, "b": None, "mix": 0.0}
    fade = {"a": 0, "b": 1, "mix": 0.5, "fade_ms": 1000, "start": start}
    assert shares(fade, 0.0) == {2: 1.0}
    assert shares(fade, 0.5) == {2: 0.5, 0: 0.25, 1: 0.25}
    assert shares(fade, 2.0) == {0: 0.5, 1: 0.5}


def test_a_screen_shows_what_a_program_fades_to() -> None:
    program, screen = Program(), Screen()
    program.begin_with(0)
    screen.turn_to(json_of(program, 10.0), 10.0)
    assert screen.parts(10.0) == []
    red, blue = jpeg(RED), jpeg(BLUE)
    screen.show(0, red)
    screen.show(1, blue)
    assert screen.parts(10.0) == [(red, 1.0)]
    program.ask(ProgramAsked(a=1, fade_ms=1000), 20.0)
    screen.turn_to(json_of(program, 20.0), 20.0)
    assert screen.parts(20.25) == [(red, pytest.approx(0.75)), (blue, pytest.approx(0.25))]
    assert screen.parts(21.0) == [(blue, 1.0)]


def test_tiles_with_one_and_the_same_picture_have_a_share_each() -> None:
    screen, red, blue = Screen(), jpeg(RED), jpeg(BLUE)
    start = {"a": 2, "b": None, "mix": 0.0}
    screen.turn_to({"a": 0, "b": 1, "mix": 0.5, "fade_ms": 1000, "start": start}, 10.0)
    for tile, picture in ((0, red), (1, red), (2, blue)):
        screen.show(tile, picture)
    expected = 0.5 * np.array(RED) + 0.5 * np.array(BLUE)
    assert np.abs(mean(blended(screen.parts(10.5))) - expected).max() < 8


def json_of(program: Program, now: float) -> Any:
    return json.loads(text_of(program.said(now)))


def test_pictures_are_blended_by_their_shares_in_the_first_ones_size() -> None:
    assert np.abs(mean(blended([(jpeg(RED), 1.0)])) - RED).max() < 8
    frame = blended([(jpeg(RED), 0.75), (jpeg(BLUE, side=32), 0.25)])
    assert (frame.width, frame.height, frame.format.name) == (64, 64, "yuv420p")
    expected = 0.75 * np.array(RED) + 0.25 * np.array(BLUE)
    assert np.abs(mean(frame) - expected).max() < 8
    # A tile that has no picture yet leaves its share to the others.
    assert np.abs(mean(blended([(jpeg(GREEN), 0.1)])) - GREEN).max() < 8
    with pytest.raises(ValueError):
        blended([(b"no picture", 1.0)])


def test_ice_servers_are_read_with_their_login() -> None:
    turn = "turn:turn.example:3478?transport=tcp"
    assert Ice.of([]) == Ice()
    assert Ice.of(["stun:stun.example:3478", turn], "user:pass:word\n").servers == (
        IceServer("stun:stun.example:3478"),
        IceServer(turn, "user", "pass:word"),
    )
    links = Ice.of(["stun:stun.example:3478", turn], "user:word").links
    assert links == ['<stun:stun.example:3478>; rel="ice-server"'], "of the relay only its login would help"
    for wrong in ("http://stun.example", "stun:", "turn:a b", "stun:a:1?transport=sctp"):
        with pytest.raises(ConfigError, match="--ice-server"):
            Ice.of([wrong], "user:word")
